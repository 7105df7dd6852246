// The page of one feature, which its address names: feature.html#<SAE>/<feature>.
"use strict";

(() => {
  const { load, make, number, bytes, picture, pixels, ready, fail } = saeflow;
  const page = document.getElementById("feature");
  const NAMES = {
    activation_rate: "fires on, training split", test_activation_rate: "fires on, test split", mean_active: "mean activation when it fires",
    max_active: "highest activation", label: "class with the largest share", label_share: "its share of the activation",
    n_effective_labels: "effective number of classes", promotes: "promotes", suppresses: "suppresses",
    effect_size: "effect on the logits (RMS)", effect_size_random: "the same of a random direction", flip_rate: "answers that change without it",
    decoder_norm: "decoder norm", encoder_cosine: "cosine of encoder and decoder", auroc_train: "hypothesis, AUROC, training split",
    auroc: "hypothesis, AUROC, test split", auroc_null_p95: "95th percentile, shuffled", p_value: "p", precision: "precision", recall: "recall",
  };
  const OF_TEXT = {
    density: "tokens on which it fires", mean_activation: "mean activation when it fires", max_activation: "highest activation",
    decoder_norm: "decoder norm",
  };
  const SHARES = ["density", "activation_rate", "test_activation_rate", "label_share", "flip_rate", "precision", "recall"];
  const PATTERNS = { haufe: "Covariance with its activation (Haufe)", gradient: "Mean gradient", gradient_input: "Gradient × input" };

  // White at 0, blue below, orange above.
  function signed(shape, packed, label) {
    const values = new Int8Array(bytes(packed).buffer);
    const mix = (to, share) => to.map((v) => Math.round(255 + share * (v - 255)));
    return picture(shape, (p) => mix(values[p] < 0 ? [0, 94, 168] : [200, 84, 0], Math.abs(values[p]) / 127), label);
  }

  // A table of signed bars; the longest fills the column.
  function bars(caption, names, values) {
    const largest = Math.max(...values.map(Math.abs), 1e-12);
    const rows = names.map((name, i) => {
      const width = (100 * Math.abs(values[i])) / largest;
      const bar = make("i", { class: values[i] < 0 ? "minus" : "plus", style: `width:${width}%` });
      return make("tr", {}, make("td", {}, String(name)), make("td", { class: "bar" }, bar), make("td", {}, number(values[i])));
    });
    return make("section", {}, make("h3", {}, caption), make("table", { class: "bars wide" }, make("tbody", {}, ...rows)));
  }

  function facts(content, names) {
    const rows = Object.keys(names).filter((name) => content[name] !== undefined).map((name) => {
      const value = content[name];
      const text = SHARES.includes(name) && value !== null ? `${number(100 * value)} %` : number(value);
      return make("tr", {}, make("th", { scope: "row" }, names[name]), make("td", {}, text));
    });
    return make("table", {}, make("tbody", {}, ...rows));
  }

  function neighbours(sae, content, caption) {
    const links = content.neighbours.map(([other, value]) =>
      make("li", {}, make("a", { href: `#${sae}/${other}` }, `feature ${other}`), ` (${number(value)})`));
    return make("section", {}, make("h3", {}, caption), make("ul", {}, ...links));
  }

  // How far to trust the hypothesis, in a sentence.
  function sureOfImages(chunk, { auroc, auroc_null_p95, p_value, test_activation_rate, precision, recall }) {
    const fires = Math.round(test_activation_rate * chunk.n_test);
    const on = `It fires on ${fires} of the ${chunk.n_test} test images`;
    if (auroc === null || auroc_null_p95 === null) return `Not tested. ${on}: too few, or too many, to test a hypothesis.`;
    const verdict = auroc <= auroc_null_p95 ? "No surer than chance" : auroc >= 0.9 ? "Quite sure" : auroc >= 0.75 ? "Fairly sure" : "Better than chance, not more";
    const share = (value) => (value === null ? "–" : `${number(100 * value, 2)} %`);
    return `${verdict}: on test images, which it was not made from, it has AUROC ${number(auroc)} (95 % of shuffled labels stay below ` +
      `${number(auroc_null_p95)}, p = ${number(p_value, 2)}). ${on}; of the images that the hypothesis names ${share(precision)} make it fire, ` +
      `and it names ${share(recall)} of those that do.`;
  }

  async function ofImages(sae, chunk, content, size) {
    const files = [...new Set(content.top.map(([image]) => Math.floor(image / size)))];
    const images = Object.assign({}, ...(await Promise.all(files.map((k) => load(`features/images/${k}.js`, `features/images/${k}`)))));
    const examples = content.top.map(([image, value]) => {
      const [packed, label] = images[image];
      return make("li", {}, pixels(chunk.shape, packed, `image ${image} of class ${label}`), `class ${label}`, make("br"), number(value));
    });
    const patterns = Object.entries(PATTERNS).map(([name, words]) =>
      make("li", {}, signed(chunk.shape, content.patterns[name], words), words));
    const classes = chunk.classes.map((_, label) => `class ${label}`);
    return [
      make("p", {}, make("b", {}, "How sure: "), sureOfImages(chunk, content.facts)),
      make("h2", {}, "Strongest examples"),
      make("p", { class: "note" }, "Training images on which it is highest, with its activation."),
      examples.length ? make("ul", { class: "examples" }, ...examples) : make("p", {}, "It fires on no image of the training split."),
      make("h2", {}, "Input patterns"),
      make("p", { class: "note" }, "Orange pixels raise it, blue ones lower it."),
      make("ul", { class: "examples" }, ...patterns),
      make("h2", {}, "Classes and logits"),
      make("div", { class: "columns" },
        bars("Share of its activation by class", classes, content.labels),
        bars("Logit change when its decoder row is added", classes, content.addition),
        bars("Logit change when it is removed", classes, content.ablation)),
      make("h2", {}, "Numbers"),
      make("div", { class: "columns" }, facts(content.facts, NAMES), neighbours(sae, content, "Nearest decoder rows (cosine)")),
    ];
  }

  // Text with each token shaded by its share of the highest activation.
  function shaded(tokens, values, largest, spaced) {
    const spans = tokens.map((token, t) => {
      const share = Math.round((70 * Math.max(values[t], 0)) / largest);
      const style = share ? `background:color-mix(in srgb, var(--heat) ${share}%, transparent)` : "";
      return make("span", { style, title: number(values[t]) }, token.replaceAll("\n", "↵"));
    });
    return make("p", { class: spaced ? "tokens" : "tokens words" }, ...spans);
  }

  function context(one, largest, spaced) {
    return make("li", {},
      shaded(one.tokens, one.values, largest, spaced),
      make("span", { class: "note" }, `${number(one.value)}, document ${one.document}`));
  }

  // Rows of words and numbers under their names.
  function rows(names, cells) {
    const head = make("tr", {}, ...names.map((name, i) => make("th", { scope: "col", ...(i ? {} : { class: "text" }) }, name)));
    const body = cells.map((row) => make("tr", {}, ...row.map((cell, i) => make("td", i ? {} : { class: "text" }, cell instanceof Node ? cell : typeof cell === "number" ? number(cell) : String(cell ?? "–")))));
    return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": names[0] }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
  }

  // What concept tests and inversion found, of the features that they looked at.
  function tested(content, spaced) {
    const parts = [];
    if (content.concepts) {
      parts.push(make("h2", {}, "Concepts"), make("p", { class: "note" }, "Concepts for which it is among the best features: its rank on half of the sentences, AUROC on the other half, and how far that is above the best other concept."),
        rows(["Concept", "Rank", "AUROC", "Selectivity"], content.concepts));
    }
    if (content.found?.length) {
      parts.push(make("h2", {}, "Found inputs"), make("p", { class: "note" }, "Texts that were searched for, as they can be pasted, each token shaded by the activation there: activation over the highest in the data, and cross-entropy under the model (nats per token; low is fluent)."),
        rows(["Text", "Search", "Ratio", "Cross-entropy"], content.found.map(([method, , ratio, ce, tokens, profile]) =>
          [shaded(tokens, profile, Math.max(...profile, 1e-12), spaced), method.replaceAll("_", " "), ratio, ce])));
    }
    return parts;
  }

  function sureOfText(content) {
    if (content.explanation) {
      const [, detection, top] = content.explanation;
      return `its explanation tells text held out that makes it fire from text that does not with AUROC ${number(detection)}; its top token alone, ${number(top)}; chance is 0.5.`;
    }
    if (content.concepts) return `as good as the concept tests below; what stands above are tokens and logits, which no test has looked at.`;
    return "tokens and logits as they are; no test has looked at this feature.";
  }

  function ofText(sae, chunk, content) {
    const largest = Math.max(content.facts.max_activation, 1e-12);
    const { counts, edges } = content.histogram;
    const join = Math.ceil(counts.length / 20); // bins of a row: twenty rows are enough to read
    const bins = counts.filter((_, b) => b % join === 0).map((_, row) => {
      const [first, end] = [row * join, Math.min((row + 1) * join, counts.length)];
      return [`${number(edges[first], 2)} to ${number(edges[end], 2)}`, counts.slice(first, end).reduce((a, b) => a + b, 0)];
    });
    const from = bins.findIndex(([, count]) => count > 0);
    return [
      content.explanation ? make("p", {}, make("b", {}, "Explanation: "), content.explanation[0]) : "",
      make("p", {}, make("b", {}, "How sure: "), sureOfText(content)),
      make("h2", {}, "Strongest contexts"),
      make("p", { class: "note" }, "Training text around the tokens on which it is highest; the deeper the shade, the higher its activation."),
      content.top.length
        ? make("ol", { class: "contexts" }, ...content.top.map((one) => context(one, largest, chunk.spaced)))
        : make("p", {}, "It fires on no token of the training text."),
      make("h2", {}, "Tokens and logits"),
      make("p", { class: "note" }, "Logit lens: the unembedding times its decoder row, centred over the vocabulary."),
      make("div", { class: "columns" },
        bars("Raises most", ...content.raises), bars("Lowers most", ...content.lowers),
        bars("Tokens by activation", bins.slice(Math.max(from, 0)).map(([name]) => name), bins.slice(Math.max(from, 0)).map(([, count]) => count))),
      ...tested(content, chunk.spaced),
      make("h2", {}, "Numbers"),
      make("div", { class: "columns" }, facts(content.facts, OF_TEXT), neighbours(sae, content, "Fire on the same tokens (Jaccard)")),
    ];
  }

  const KINDS = { images: ofImages, text: ofText };

  async function show() {
    const [, sae, feature] = decodeURIComponent(location.hash.slice(1)).match(/^(.+)\/(\d+)$/) || [];
    try {
      const { chunk: size, images, saes } = await load("features/index.js", "features");
      const about = saes.find((one) => one.name === sae);
      if (!about || +feature >= about.n) {
        throw new Error(`${location.hash ? `No feature is called ${location.hash.slice(1)}` : "The address names no feature"}; choose one in the explorer.`);
      }
      const k = Math.floor(feature / size);
      const chunk = await load(`features/${sae}/${k}.js`, `features/${sae}/${k}`);
      const content = { ...chunk.features[feature % size] };
      content.facts = Object.fromEntries(chunk.facts.map((name, i) => [name, content.facts[i]]));
      const step = (to, words) => (to >= 0 && to < about.n ? make("a", { href: `#${sae}/${to}` }, words) : "");
      document.title = `Feature ${feature} of ${sae}`;
      page.replaceChildren(
        make("h1", {}, `Feature ${feature}`),
        make("p", { class: "lead" }, make("a", { href: `features.html#${sae}` }, sae), content.dead ? ", dead" : "", " · ",
          step(+feature - 1, "previous"), " ", step(+feature + 1, "next")),
        make("p", {}, make("b", {}, "Hypothesis: "), content.says),
        ...(await KINDS[about.kind](sae, chunk, content, images)),
      );
      ready();
    } catch (error) {
      page.replaceChildren();
      fail(error);
    }
  }

  addEventListener("hashchange", show);
  show();
})();
