// The page of the run: graph of the rules, what they cost, the longest path.
"use strict";

(async () => {
  const { load, make, number, plot, ready, fail } = saeflow;
  const SVG = "http://www.w3.org/2000/svg";

  function draw(name, attributes, ...children) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  // Rules in rows, each as far down as its longest chain of inputs is.
  function graph(rules, edges) {
    const depth = Object.fromEntries(rules.map((rule) => [rule, 0]));
    for (let round = 0; round < rules.length; round++) {
      for (const [from, to] of edges) depth[to] = Math.max(depth[to], depth[from] + 1);
    }
    const rows = [];
    for (const rule of rules) (rows[depth[rule]] ??= []).push(rule);
    const [wide, high, across, down] = [190, 28, 206, 78];
    const width = Math.max(...rows.map((row) => row.length)) * across;
    const at = {};
    rows.forEach((row, y) => {
      // Below what it reads, so that arrows cross less.
      const middle = (rule) => {
        const before = edges.filter(([, to]) => to === rule).map(([from]) => at[from][0]);
        return before.length ? before.reduce((a, b) => a + b, 0) / before.length : 0;
      };
      row.sort((a, b) => middle(a) - middle(b) || a.localeCompare(b));
      row.forEach((rule, x) => { at[rule] = [(width - row.length * across) / 2 + x * across, y * down]; });
    });
    const lines = edges.map(([from, to]) => {
      const [x0, y0, x1, y1] = [at[from][0] + wide / 2, at[from][1] + high, at[to][0] + wide / 2, at[to][1]];
      const bend = (y1 - y0) / 2;
      return draw("path", { d: `M${x0} ${y0}C${x0} ${y0 + bend} ${x1} ${y1 - bend} ${x1} ${y1}`, "marker-end": "url(#tip)" });
    });
    const boxes = rules.flatMap((rule) => [
      draw("rect", { x: at[rule][0], y: at[rule][1], width: wide, height: high, rx: 5 }),
      draw("text", { x: at[rule][0] + wide / 2, y: at[rule][1] + 18, "text-anchor": "middle" }, rule),
    ]);
    const tip = draw("marker", { id: "tip", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
      draw("path", { d: "M0 0L8 4L0 8" }));
    const height = (rows.length - 1) * down + high;
    const picture = draw("svg", { viewBox: `0 -8 ${width} ${height + 16}`, width, role: "img", "aria-label": "Which rule reads what another makes" },
      draw("defs", {}, tip), ...lines, ...boxes);
    document.getElementById("graph").replaceChildren(picture);
  }

  function fill(id, names, rows) {
    const head = make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)));
    const body = rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell))));
    document.getElementById(id).replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
  }

  try {
    const run = await load("run_data.js", "run");
    const machine = run.machines.map((m) => `${m.processor}, ${m.processors} processors, ${Math.round(m.memory_mb / 1024)} GiB${m.gpus.length ? `, ${m.gpus.join(", ")}` : ""}${m.container ? ", in a container" : ""}`);
    document.getElementById("where").textContent = `${run.jobs.length} jobs from ${run.started} to ${run.ended}, on ${machine.join("; ")}.`;
    const time = (seconds) => (seconds < 100 ? `${number(seconds, 2)} s` : seconds < 6000 ? `${number(seconds / 60, 2)} min` : `${number(seconds / 3600, 2)} h`);
    const cpu = run.rules.reduce((sum, rule) => sum + rule.cpu_seconds, 0);
    const path = run.path.at(-1)?.until || 0;
    document.getElementById("tenfold").textContent = `This run took ${time(cpu)} of CPU time, and no less than ${time(path)} on any number of ` +
      `processors. If all but the start of each job (${time(run.tenfold.start)}) took ten times as long, as with ten times the images, tokens or steps: ` +
      `${time(run.tenfold.cpu_seconds)} of CPU time, and no less than ${time(run.tenfold.path_seconds)}. Rules whose cost does not grow with them make that too high.`;
    graph(run.rules.map((rule) => rule.name), run.edges);
    fill("rules", ["Rule", "Jobs", "CPU time (s)", "Longest job (s)", "Largest job (MiB)"],
      run.rules.map((rule) => [rule.name, rule.jobs, number(rule.cpu_seconds), number(rule.longest_seconds), number(rule.memory_mib)].map(String)));
    fill("path", ["Job", "Seconds", "Since the start of the chain"], run.path.map((job) => [job.name, number(job.seconds), number(job.until)]));
    const names = [...new Set(run.jobs.map((job) => job.rule))];
    const cost = () => plot(document.getElementById("cost"), names.map((rule, i) => {
      const jobs = run.jobs.filter((job) => job.rule === rule && job.input_mb > 0);
      return { x: jobs.map((j) => j.input_mb), y: jobs.map((j) => j.seconds), text: jobs.map((j) => j.name), name: rule, mode: "markers",
        marker: { symbol: i % 8, size: 8 }, hovertemplate: "%{text}<br>%{y:.3g} s, %{x:.3g} MB<extra></extra>" };
    }), { height: 460, xaxis: { title: { text: "input (MB)" }, type: "log" }, yaxis: { title: { text: "wall-clock time (s)" }, type: "log" } });
    addEventListener("saeflow-theme", cost);
    cost();
    ready();
  } catch (error) {
    fail(error);
  }
})();
