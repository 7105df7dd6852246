// Data files, the theme, and the small parts that several pages build from.
"use strict";

window.saeflow = (() => {
  const kept = new Map();
  const waiting = new Map();

  // Called by data files.
  function put(key, content) {
    kept.set(key, content);
    waiting.get(key)?.resolve(content);
    waiting.delete(key);
  }

  // Content of a data file that puts it under the key; the file is loaded once.
  function load(file, key) {
    if (kept.has(key)) return Promise.resolve(kept.get(key));
    if (waiting.has(key)) return waiting.get(key).promise;
    const wait = {};
    wait.promise = new Promise((resolve, reject) => Object.assign(wait, { resolve, reject }));
    waiting.set(key, wait);
    const script = document.createElement("script");
    script.src = file.split("/").map(encodeURIComponent).join("/");
    script.onerror = () => {
      waiting.delete(key);
      wait.reject(new Error(`${file} cannot be read: is the whole site folder here?`));
    };
    document.head.append(script);
    return wait.promise;
  }

  // An element: make("td", {class: "text"}, "content", child, ...).
  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  const number = (value, digits = 3) =>
    value === null || value === undefined ? "–" : typeof value === "number" ? String(+value.toPrecision(digits)) : String(value);
  const percent = (value, spread) =>
    value === null || value === undefined ? "–" : (100 * value).toFixed(1) + (spread ? ` ± ${(100 * spread).toFixed(1)}` : "");

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  // A picture of height x width pixels, given the colour of each.
  function picture([height, width], colour, label) {
    const canvas = make("canvas", { width, height, role: "img", "aria-label": label });
    const image = new ImageData(width, height);
    for (let p = 0; p < width * height; p++) image.data.set([...colour(p), 255], 4 * p);
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  // An image in shades of grey.
  function pixels(shape, packed, label) {
    const values = bytes(packed);
    return picture(shape, (p) => [values[p], values[p], values[p]], label);
  }

  // Says that the page shows what it is going to show.
  function ready() {
    document.documentElement.dataset.ready = "";
  }

  function fail(error) {
    ready();
    document.querySelector("main").prepend(make("p", { class: "error", role: "alert" }, error.message));
  }

  // Black on light cells, white on dark ones, from blue (0) to yellow (1): cividis, which all readers tell apart.
  function heat(share) {
    const stops = [[0, 34, 78], [65, 77, 107], [124, 123, 120], [188, 175, 111], [254, 232, 56]];
    const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    const rgb = stops[low].map((v, i) => Math.round(v + (at - low) * (stops[low + 1][i] - v)));
    return { background: `rgb(${rgb})`, color: share > 0.55 ? "#000" : "#fff" };
  }

  // Okabe and Ito's palette, which all readers tell apart.
  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];

  // A table's columns as rows.
  const records = (frame) => frame[Object.keys(frame)[0]].map((_, i) => Object.fromEntries(Object.entries(frame).map(([k, v]) => [k, v[i]])));

  // Colours of the page, for plots.
  function plot(element, traces, layout) {
    const style = getComputedStyle(document.documentElement);
    const [ink, line] = ["--ink", "--line"].map((name) => style.getPropertyValue(name).trim());
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: ink, automargin: true };
    const whole = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 13 },
      colorway: COLOURS, margin: { t: 20, r: 20, l: 60, b: 55 },
      ...layout, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    };
    Plotly.react(element, traces, whole, { displaylogo: false, responsive: true });
  }

  function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = theme === "dark" ? "Light" : "Dark";
  }
  const stored = () => { try { return localStorage.getItem("saeflow-theme"); } catch { return null; } };
  setTheme(stored() || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  // Paper is light, plots too.
  let onScreen = null;
  const show = (theme) => { setTheme(theme); dispatchEvent(new Event("saeflow-theme")); };
  addEventListener("beforeprint", () => { onScreen = document.documentElement.dataset.theme; show("light"); });
  addEventListener("afterprint", () => show(onScreen));
  addEventListener("DOMContentLoaded", () => {
    setTheme(document.documentElement.dataset.theme);
    document.getElementById("theme").addEventListener("click", () => {
      show(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
      try { localStorage.setItem("saeflow-theme", document.documentElement.dataset.theme); } catch { /* not kept */ }
    });
  });

  return { put, load, make, number, percent, records, heat, plot, bytes, picture, pixels, COLOURS, ready, fail };
})();
