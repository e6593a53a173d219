// Repeats `select` for other thresholds, from the sample in the page.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const OUTCOMES = data.outcomes;
  const KEPT = OUTCOMES.indexOf("kept");
  const Z = 1.959963984540054; // of a 95 % interval
  const MAX_CARDS = 24;

  const column = (packed) =>
    new Float64Array(Uint8Array.from(atob(packed), (c) => c.charCodeAt(0)).buffer);
  const decided = column(data.decided);
  const keepAll = column(data.keep_all);
  const n = decided.length;
  const isCensus = n === data.n_readable;
  const steps = data.steps.map((step) => ({
    ...step,
    code: OUTCOMES.indexOf(step.reason),
    columns: Object.fromEntries(
      Object.entries(step.columns).map(([name, packed]) => [name, column(packed)])),
  }));
  const ofRun = Object.fromEntries(
    steps.flatMap((step) => step.knobs.map((knob) => [knob.path, knob.value])));

  // ceil(fraction * count), where the fraction counts as it is written.
  function share(fraction, count) {
    let [digits, exponent = "0"] = String(fraction).split("e");
    const [whole, decimals = ""] = digits.split(".");
    const power = decimals.length - Number(exponent);
    const numerator = BigInt(whole + decimals) * BigInt(count);
    const denominator = 10n ** BigInt(Math.max(power, 0));
    return Number((numerator + denominator - 1n) / denominator);
  }

  // The lowest score to keep, as `quantiles.find_cut` finds it.
  function cut(scores, rows, fraction) {
    const measured = rows.map((i) => scores[i]).filter((score) => !Number.isNaN(score));
    const best = Float64Array.from(measured).sort().reverse();
    if (!best.length) return NaN;
    return best[Math.min(share(fraction, rows.length), best.length) - 1];
  }

  function failsLanguage({ probability, is_wanted, short, score }, i, knobs) {
    if (short[i] === 1) return !(score[i] >= knobs[2]);
    if (short[i]) return short[i] === 3;
    const isAbove = probability[i] >= (is_wanted[i] ? knobs[0] : knobs[1]);
    return is_wanted[i] ? !isAbove : isAbove;
  }

  // Of each image the pair of the smallest rank: those that stay.
  function firstOfImage({ group, rank }, rows) {
    const first = new Map();
    for (const i of rows) {
      const known = first.get(group[i]);
      if (known === undefined || rank[i] < rank[known]) first.set(group[i], i);
    }
    return new Set(first.values());
  }

  // Row to the outcome that a step gives it, or -1 if it passes.
  function judge(step, rows, values) {
    const { columns, code } = step;
    const knobs = step.knobs.map((knob) => values[knob.path]);
    const drop = (fails) => (i) => (fails(i) ? code : -1);
    switch (step.kind) {
      case "fixed": return (i) => columns.outcome[i];
      case "least": return drop((i) => !(columns.value[i] >= knobs[0]));
      case "most": return drop((i) => !(columns.value[i] <= knobs[0]));
      case "language": return drop((i) => failsLanguage(columns, i, knobs));
      case "fraction": {
        const least = cut(columns.value, rows, knobs[0]);
        return drop((i) => !(columns.value[i] >= least));
      }
      case "first_of_image": {
        const stays = firstOfImage(columns, rows);
        return drop((i) => !stays.has(i));
      }
    }
    throw new Error(`unknown step ${step.kind}`);
  }

  // The outcome of every sampled pair at some thresholds.
  function decide(values) {
    const outcome = new Int16Array(n).fill(KEPT);
    for (const step of steps) {
      const rows = [];
      for (let i = 0; i < n; i++) {
        if (outcome[i] === KEPT && !(step.spares_keep_all && keepAll[i])) rows.push(i);
      }
      const verdict = judge(step, rows, values);
      for (const i of rows) {
        const found = verdict(i);
        if (found >= 0) outcome[i] = found;
      }
    }
    return outcome;
  }

  const before = decide(ofRun);

  // Wilson's interval of a share.
  function wilson(count, size) {
    const p = count / size, z2 = (Z * Z) / size;
    const middle = (p + z2 / 2) / (1 + z2);
    const half = (Z * Math.sqrt((p * (1 - p)) / size + z2 / (4 * size))) / (1 + z2);
    return [Math.max(0, middle - half), Math.min(1, middle + half)];
  }

  // What becomes of all pairs: what the run counted, and how much the sample changes.
  // The interval is that of a difference of two shares (Newcombe), of as many draws as
  // the sample has images, since pairs of one image are drawn together.
  function counts(outcome) {
    const gained = new Float64Array(OUTCOMES.length);
    const lost = new Float64Array(OUTCOMES.length);
    for (let i = 0; i < n; i++) {
      if (outcome[i] !== before[i]) {
        gained[outcome[i]]++;
        lost[before[i]]++;
      }
    }
    const isChanged = gained.some((count) => count > 0);
    return OUTCOMES.map((name, code) => {
      const ofRun = data.counts[name] ?? 0;
      const change = n ? ((gained[code] - lost[code]) / n) * data.n_readable : 0;
      const estimate = Math.max(0, Math.round(ofRun + change));
      if (isCensus || !isChanged || !n) return { name, ofRun, estimate, ends: null };
      const [g, l] = [gained[code] / n, lost[code] / n];
      const [g0, g1] = wilson(g * data.n_images, data.n_images);
      const [l0, l1] = wilson(l * data.n_images, data.n_images);
      const least = g - l - Math.hypot(g - g0, l1 - l), most = g - l + Math.hypot(g1 - g, l - l0);
      const ends = [least, most].map((end) =>
        Math.min(data.n_readable, Math.max(0, Math.round(ofRun + end * data.n_readable))));
      return { name, ofRun, estimate, ends };
    });
  }

  const number = new Intl.NumberFormat("en-US");
  const shown = (count) => number.format(count);
  const title = (outcome) => outcome.replaceAll("_", " ");
  const element = (tag, className, text = "") => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.textContent = text;
    return made;
  };

  function showFunnel(found, isMoved) {
    const nRead = Object.values(data.counts).reduce((sum, count) => sum + count, 0);
    for (const row of document.querySelectorAll("[data-outcome]")) {
      const one = found.find(({ name }) => name === row.dataset.outcome);
      const change = one.estimate - one.ofRun;
      const ends = one.ends ? ` (${one.ends.map(shown).join(" to ")})` : "";
      row.querySelector(".n-if").textContent = shown(one.estimate) + ends;
      row.querySelector(".n-if").dataset.count = one.estimate;
      const cell = row.querySelector(".n-change");
      cell.textContent = change ? (change > 0 ? "+" : "−") + shown(Math.abs(change)) : "";
      const gain = one.name === "kept" ? change : -change;
      cell.className = `what-if n-change ${gain > 0 ? "better" : gain < 0 ? "worse" : ""}`;
      const width = isMoved && nRead ? (100 * one.estimate) / nRead : 0;
      row.querySelector(".if-bar").setAttribute("width", width);
      row.classList.toggle("hidden", row.classList.contains("only-what-if") && !one.estimate);
    }
    const kept = found[KEPT];
    const about = isCensus || !isMoved ? "" : "about ";
    const percent = nRead ? ((100 * kept.estimate) / nRead).toFixed(1) : "0.0";
    document.getElementById("said").textContent =
      `${about}${shown(kept.estimate)} kept (${percent} %)` +
      (isMoved ? `, ${shown(kept.ofRun)} in the run` : ", as in the run");
  }

  function pictureOf(key) {
    const there = document.querySelector(`img[data-key="${CSS.escape(key)}"]`);
    return there ? there.src : data.pictures[key];
  }

  function card(i, outcome) {
    const made = element("li", "card");
    const source = pictureOf(data.keys[i]);
    if (source) {
      const image = element("img");
      image.src = source;
      image.alt = `image of: ${data.texts[i]}`;
      made.append(image);
    } else {
      made.append(element("span", "no-picture", "no picture"));
    }
    const text = element("p", "text");
    text.append(element("bdi", "", data.texts[i] || "(no alt text)"));
    const verdict = `${title(OUTCOMES[before[i]])} → ${title(OUTCOMES[outcome[i]])}`;
    made.append(text, element("p", "verdict", verdict), element("p", "verdict", data.ids[i]));
    return made;
  }

  function showMoved(outcome) {
    const changed = [];
    for (let i = 0; i < n; i++) if (outcome[i] !== before[i]) changed.push(i);
    const withPicture = changed.filter((i) => pictureOf(data.keys[i]));
    const without = changed.filter((i) => !pictureOf(data.keys[i]));
    const first = [...withPicture, ...without].slice(0, MAX_CARDS);
    document.getElementById("moved").classList.toggle("hidden", !changed.length);
    document.getElementById("moved-title").textContent =
      `Pairs that would change: ${shown(first.length)} of ${shown(changed.length)}` +
      (isCensus ? "" : " in the sample");
    document.getElementById("moved-cards").replaceChildren(
      ...first.map((i) => card(i, outcome)));
  }

  const values = { ...ofRun };
  const ranges = [...document.querySelectorAll("input[type=range]")];
  const numbers = [...document.querySelectorAll("input[type=number]")];

  function show() {
    const moved = Object.keys(ofRun).filter((path) => values[path] !== ofRun[path]);
    const outcome = moved.length ? decide(values) : before;
    showFunnel(counts(outcome), moved.length > 0);
    showMoved(outcome);
    document.getElementById("command-line").classList.toggle("hidden", !moved.length);
    document.getElementById("settings").textContent =
      moved.map((path) => `--set ${path}=${values[path]}`).join(" ");
  }

  function follow(input, others) {
    if (input.value === "" || !Number.isFinite(Number(input.value))) return;
    const { path, decimals } = input.dataset; // sliders have decimals, numbers none
    values[path] = decimals === undefined
      ? Number(input.value) : Number(Number(input.value).toFixed(decimals));
    for (const other of others) {
      if (other.dataset.path === path) other.value = values[path];
    }
    show();
  }

  for (const input of ranges) input.addEventListener("input", () => follow(input, numbers));
  for (const input of numbers) input.addEventListener("input", () => follow(input, ranges));
  document.getElementById("what-if").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("what-if").addEventListener("reset", () => {
    Object.assign(values, ofRun);
    setTimeout(show); // when the browser has put the inputs back
  });

  let nOther = 0;
  for (let i = 0; i < n; i++) if (before[i] !== decided[i]) nOther++;
  if (nOther) {
    const note = document.getElementById("mismatch");
    note.textContent =
      `At the run's own thresholds the page decides otherwise on ${shown(nOther)} of ` +
      `${shown(n)} sampled pairs: a step of this run cannot be repeated here.`;
    note.classList.remove("hidden");
  }
  document.getElementById("what-if").reset(); // a browser may remember other values
  show();
})();
