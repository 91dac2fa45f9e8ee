// The page: what is asked stands in the address, so that a view can be sent to a colleague.

import { Refused, ask, fill, floats, h, ints, png, work } from "./api.js";
import { Cortex } from "./cortex.js";

const $ = (id) => document.getElementById(id);
const MOST_ROWS = 600;
const TABS = ["decode", "encode", "tokens", "scores"];
const START = { tab: "decode", subject: "", stimulus: "", repeat: "", query: "", hidden: "", samples: "1", guidance: "1", temperature: "1", seed: "0",
  text: "", picture: "", seen: "", against: "", spread: "", swapped: "", masked: "", token: "0", lessPicture: "", lessSeen: "", view: "behind", shows: "values", roi: "", direction: "image->brain", sort: "direction", metric: "", of: "", whose: "", where: "" };
const state = { ...START, ...Object.fromEntries(new URLSearchParams(location.hash.slice(1))) };
let about, cortex, last = { maps: null }, running = null, newest = null;

// step: whether the way back leads to what was before.
function set(changes, step = false) {
  Object.assign(state, changes);
  const told = Object.entries(state).filter(([name, value]) => name in START && String(value) !== START[name]);
  history[step ? "pushState" : "replaceState"](null, "", `#${new URLSearchParams(told)}`);
}

// What is shown belongs to what was asked before: it fades until the answer is there, and goes if none comes.
const BOTH = ["result", "stage"];
function fade(parts, faded) { for (const one of parts) $(one).classList.toggle("stale", faded); }

function empty(sentence, parts = BOTH) {
  if (parts.includes("result")) fill($("result"), h("p.quiet", {}, sentence));
  if (parts.includes("stage")) { fill($("downloads"), ); cortex.clear(state.subject); }
  fade(parts, false);
}

function problem(error) {
  if (error && !(error instanceof Refused)) console.error(error);
  $("problem").hidden = !error;
  $("problem").textContent = error ? error.message : "";
}

// Runs one job at a time: what is asked next takes the place of what was asked before.
// parts: of the page that its answer fills.
async function job(path, body, parts = BOTH) {
  problem(null);
  running?.();
  const own = (newest = Symbol("job"));
  fade(parts, true);
  try {
    const done = await work(path, body, (one, cancel) => {
      if (own !== newest) { cancel(); return; }
      running = cancel;
      $("job").hidden = false;
      const [bar, words, button] = $("job").children;
      if (one.total) bar.value = one.done / one.total; else bar.removeAttribute("value");
      words.textContent = one.state === "waiting" ? "waits its turn" : `${one.name || one.kind} ${one.total ? `${one.done} of ${one.total}` : ""}`;
      button.onclick = cancel;
    });
    if (own !== newest) return null;
    if (done) fade(parts, false); else empty("Cancelled: there is no answer to show.", parts);
    return done;
  } catch (error) {
    if (own === newest) { empty("There is no answer to show.", parts); problem(error); }
    return null;
  } finally {
    if (own === newest) { $("job").hidden = true; running = null; }
  }
}

const subjectFacts = () => about.subjects.find((one) => one.name === state.subject);
const list = (text) => text.split(",").filter(Boolean);

function paint(values, label, options = {}) {
  fade(["stage"], false);
  const ended = cortex.show(state.subject, values, { label, ...options });
  ended.catch((error) => { problem(new Refused("The cortex could not be drawn: this browser gives no WebGL 2. The other answers are not touched by that.")); console.warn(error); });
}

// --- controls that views share

function slider(name, title, low, high, step) {
  const out = h("output", {}, state[name]);
  return h("label", {}, title, " ", out, h("input", { type: "range", min: low, max: high, step, value: state[name], id: `in-${name}`,
    oninput: (event) => { out.textContent = event.target.value; set({ [name]: event.target.value }); }, onchange: () => renew() }));
}

function browser(chosen, kept = "stimulus") {
  const thumbs = h("div", { id: "thumbs", role: "listbox", "aria-label": "Held-out stimuli" });
  const count = h("p.quiet");
  const search = h("input", { type: "search", id: "in-query", placeholder: "Search captions", value: state.query, "aria-label": "Search captions", maxLength: 200 });
  let start = 0, turn = 0, waiting;
  const more = h("button", { onclick: () => find(false) }, "More");
  async function find(anew = true) {
    const own = ++turn;
    if (anew) start = 0;
    more.disabled = true;
    const asked = new URLSearchParams({ query: state.query, start, most: 60, subject: state.subject });
    const found = await ask(`/api/stimuli?${asked}`).catch((error) => (problem(error), { total: 0, stimuli: [] }));
    if (own !== turn) return found.stimuli;
    more.disabled = false;
    if (anew) thumbs.replaceChildren();
    start += found.stimuli.length;
    for (const one of found.stimuli) {
      const said = one.captions[0] ?? one.id;
      const inside = about.image_size ? h("img", { src: `/api/stimuli/${encodeURIComponent(one.id)}/picture.png?small=true`, alt: said, loading: "lazy" }) : said;
      thumbs.append(h("button", { title: `${said} (${one.id})`, role: "option", "aria-pressed": String(one.id === state[kept]), "data-stimulus": one.id,
        onclick: (event) => { for (const other of thumbs.children) other.setAttribute("aria-pressed", "false"); event.currentTarget.setAttribute("aria-pressed", "true");
          set({ [kept]: one.id, ...(kept === "stimulus" && { repeat: "", swapped: "", masked: "" }) }, true); chosen(one); } }, inside));
    }
    more.hidden = start >= found.total;
    count.textContent = `${found.total} held-out stimuli`;
    return found.stimuli;
  }
  search.oninput = () => { clearTimeout(waiting); waiting = setTimeout(() => { set({ query: search.value }); find(); }, 200); };
  thumbs.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 4, ArrowUp: -4 }[event.key];
    const here = [...thumbs.children].indexOf(document.activeElement);
    if (step && here >= 0) { event.preventDefault(); thumbs.children[Math.max(0, Math.min(thumbs.children.length - 1, here + step))].focus(); }
  };
  return { parts: [search, count, thumbs, more], find };
}

function repeats(one) {
  const many = one.repeats[state.subject] ?? 0;
  const choose = h("select", { id: "in-repeat", onchange: (event) => { set({ repeat: event.target.value }); renew(); } },
    h("option", { value: "" }, `mean of ${many} trial${many === 1 ? "" : "s"}`), ...Array.from({ length: many }, (_, at) => h("option", { value: String(at) }, `trial ${at + 1}`)));
  choose.value = state.repeat;
  return h("label", {}, "Response ", choose);
}

async function chosenStimulus(find) {
  const found = await find();
  if (!state.stimulus && found.length) { set({ stimulus: found[0].id }); document.querySelector("#thumbs button")?.setAttribute("aria-pressed", "true"); }
  if (!state.stimulus) return null;
  const same = found.find((one) => one.id === state.stimulus);
  if (same) return same;
  try {
    return (await ask(`/api/stimuli?${new URLSearchParams({ id: state.stimulus })}`)).stimuli[0];
  } catch (error) {
    empty("Choose a stimulus.");
    problem(error);
    return null;
  }
}

function roiButtons(pressed, press) {
  const names = Object.keys(subjectFacts().rois);
  fill($("rois"), ...names.map((name) => h("button", { "aria-pressed": String(pressed(name)), title: `${subjectFacts().rois[name]} sites`, onclick: () => press(name) }, name)));
}

// --- decode

const decode = {
  async open() {
    const options = h("div");
    const { parts, find } = browser((one) => { options.replaceChildren(...this.options(one)); renew(); });
    fill($("controls"), h("h2", {}, "What was seen"), ...parts, options);
    const one = await chosenStimulus(find);
    if (one && state.tab === "decode") { options.replaceChildren(...this.options(one)); this.one = one; await renew(); }
  },
  options(one) {
    this.one = one;
    return [repeats(one), slider("samples", "Samples", 0, 6, 1), slider("guidance", "Guidance", 0, 4, 0.25), slider("temperature", "Temperature", 0, 2, 0.1),
      h("label", {}, "Seed ", h("input", { type: "number", id: "in-seed", min: 0, value: state.seed, onchange: (event) => { set({ seed: event.target.value || "0" }); renew(); } }))];
  },
  async renew() {
    if (!state.stimulus) return;
    const hidden = list(state.hidden).filter((name) => name in subjectFacts().rois); // another subject's are not his
    if (hidden.join() !== state.hidden) set({ hidden: hidden.join() });
    roiButtons((name) => hidden.includes(name), (name) => { set({ hidden: (hidden.includes(name) ? hidden.filter((one) => one !== name) : [...hidden, name]).join() }); renew(); });
    if (Object.keys(subjectFacts().rois).length) $("rois").prepend(h("span.quiet", {}, "Hide and decode again: "));
    const about_seen = { subject: state.subject, stimulus: state.stimulus, repeat: state.repeat === "" ? null : Number(state.repeat) };
    const query = new URLSearchParams({ stimulus: state.stimulus, ...(state.repeat !== "" && { repeat: state.repeat }) });
    const turn = (this.turn = (this.turn ?? 0) + 1); // what was asked before and comes later is not shown
    const measured = floats((await ask(`/api/measured/${encodeURIComponent(state.subject)}?${query}`)).values);
    const space = await cortex.space(state.subject);
    if (turn !== this.turn || state.tab !== "decode") return;
    for (const name of hidden) for (const site of space.rois[name] ?? []) measured[site] = NaN;
    paint(measured, "measured response (z)");
    const done = await job("/api/decode", { ...about_seen, hidden, samples: Number(state.samples), guidance: Number(state.guidance), temperature: Number(state.temperature), seed: Number(state.seed) }, ["result"]);
    if (done && turn === this.turn && state.tab === "decode") this.told(done.result);
  },
  told(found) {
    const named = (at) => (at ? `sample ${at}` : "expected");
    const seen = about.image_size ? [h("figure", {}, h("img", { src: `/api/stimuli/${encodeURIComponent(state.stimulus)}/picture.png`, alt: "what was seen" }), h("figcaption", {}, "seen"))] : [];
    fill($("result"), 
      h("h2", {}, "Pictures"),
      h("div.pictures", {}, ...seen, ...found.pictures.map((one, at) => h("figure", {}, h("img", { src: png(one), alt: `decoded picture, ${named(at)}` }), h("figcaption", {}, named(at))))),
      found.pictures.length ? null : h("p.quiet", {}, "This run decodes no pictures."),
      h("h2", {}, "Captions"),
      found.captions.length ? null : h("p.quiet", {}, "This run decodes no captions."),
      h("table", {}, h("tbody", {}, ...(this.one?.captions ?? []).slice(0, 2).map((said) => h("tr", {}, h("th", {}, "seen"), h("td", {}, said))),
        ...found.captions.map((said, at) => h("tr", {}, h("th", {}, at ? `sample ${at}` : "likeliest"), h("td", {}, said))))),
      h("h2", {}, "How likely is what was seen?"),
      h("table", { id: "ranks" }, h("tbody", {}, ...Object.entries(found.ranks).map(([target, rank]) => h("tr", {}, h("th", {}, target === "image" ? "picture" : "caption"),
        h("td", {}, `rank ${rank} of ${found.candidates} held-out stimuli`), h("td.number", {}, `log p ${found.log_p[target].toFixed(1)}`))))),
      h("p.quiet", {}, "Rank 1: nothing else that was held out is likelier, given this response."),
    );
    fill($("downloads"), );
  },
};

// --- encode

const encode = {
  async open() {
    const said = h("textarea", { id: "in-text", rows: 2, placeholder: "A sentence, e.g. a face", maxLength: 1000, value: state.text });
    const other = h("input", { type: "text", id: "in-against", placeholder: "minus, e.g. a house", maxLength: 1000, value: state.against });
    const go = () => { problem(null); set({ text: said.value.trim(), against: other.value.trim() }); renew(); };
    for (const field of [said, other]) field.onkeydown = (event) => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); go(); } };
    const { parts, find } = browser(() => { set({ picture: "" }); this.preview(); renew(); }, "seen");
    this.box = h("div.drop", { id: "drop" });
    this.less = h("div", { id: "less" });
    const file = h("input", { type: "file", accept: "image/png,image/jpeg,image/webp", id: "in-file", onchange: () => { if (file.files[0]) this.upload(file.files[0]).then(() => { file.value = ""; }); } }); // the same one may be chosen again
    this.box.ondragover = (event) => { event.preventDefault(); this.box.classList.add("over"); };
    this.box.ondragleave = () => this.box.classList.remove("over");
    this.box.ondrop = (event) => { event.preventDefault(); this.box.classList.remove("over"); if (event.dataTransfer.files[0]) this.upload(event.dataTransfer.files[0]); };
    const pad = this.pad();
    fill($("controls"), h("h2", {}, "What is shown"), h("label", {}, "Sentence", said), h("label", {}, "Contrast", other), this.less,
      h("div.row", {}, h("button.main", { id: "go", onclick: go }, "Predict"), h("label", {}, h("input", { type: "checkbox", id: "in-spread", checked: state.spread === "1",
        onchange: (event) => { set({ spread: event.target.checked ? "1" : "" }); renew(); } }), " with its uncertainty")),
      about.reads.image ? h("details", { open: Boolean(state.picture || state.seen) }, h("summary", {}, "A picture"), this.box, file, ...pad,
        h("details", {}, h("summary", {}, "Of the held-out stimuli"), ...parts)) : null);
    this.preview();
    await find();
    if (state.tab === "encode") await renew();
  },
  pad() {
    const paper = h("canvas", { id: "draw", width: 128, height: 128, tabIndex: 0, "aria-label": "Draw a picture here" });
    const pen = paper.getContext("2d"), clear = () => { pen.fillStyle = "#fff"; pen.fillRect(0, 0, 128, 128); };
    clear();
    const colour = h("input", { type: "color", value: "#c02020", "aria-label": "Colour of the pen" });
    let from = null;
    const at = (event) => [event.offsetX * 128 / paper.clientWidth, event.offsetY * 128 / paper.clientHeight];
    paper.onpointerdown = (event) => { paper.setPointerCapture(event.pointerId); from = at(event); };
    paper.onpointermove = (event) => { if (!from) return; Object.assign(pen, { strokeStyle: colour.value, lineWidth: 9, lineCap: "round" });
      pen.beginPath(); pen.moveTo(...from); from = at(event); pen.lineTo(...from); pen.stroke(); };
    paper.onpointerup = () => { from = null; };
    return [h("details", {}, h("summary", {}, "Draw one"), paper, h("div.row", {}, colour, h("button", { onclick: clear }, "Clear"),
      h("button", { id: "use-drawing", onclick: () => paper.toBlob((blob) => this.upload(blob)) }, "Use it")))];
  },
  async upload(blob) {
    problem(null);
    try {
      set({ picture: (await ask("/api/pictures", blob)).id, seen: "" });
      this.preview();
      await renew();
    } catch (error) { problem(error); }
  },
  preview() {
    const source = state.picture ? `/api/pictures/${encodeURIComponent(state.picture)}` : state.seen && about.image_size ? `/api/stimuli/${encodeURIComponent(state.seen)}/picture.png` : "";
    this.box.replaceChildren(...(source ? [h("img", { src: source, alt: "the picture that is shown", width: 96 }), h("br"),
      h("button", { onclick: () => { set({ picture: "", seen: "" }); this.preview(); renew(); } }, "Take it away"), " ",
      h("button", { id: "as-contrast", onclick: () => { set({ lessPicture: state.picture, lessSeen: state.picture ? "" : state.seen, picture: "", seen: "" }); this.preview(); renew(); } }, "Take it as the contrast")] : ["Drop a picture here, or choose a file"]));
    const minus = state.lessPicture ? `/api/pictures/${encodeURIComponent(state.lessPicture)}` : state.lessSeen && about.image_size ? `/api/stimuli/${encodeURIComponent(state.lessSeen)}/picture.png` : "";
    this.less.replaceChildren(...(minus ? ["minus ", h("img", { src: minus, alt: "the picture that is the contrast", width: 64 }), " ",
      h("button", { onclick: () => { set({ lessPicture: "", lessSeen: "" }); this.preview(); renew(); } }, "Take it away")] : []));
  },
  contrast() { return { text: state.against || null, picture: state.lessPicture || null, stimulus: state.lessPicture ? null : state.lessSeen || null }; },
  words() {
    const told = (text, pictured) => [text && `“${text}”`, pictured && "a picture"].filter(Boolean).join(" and ");
    const minus = told(state.against, state.lessPicture || state.lessSeen);
    return `${told(state.text, state.picture || state.seen)}${minus && ` minus ${minus}`}`;
  },
  rois() { roiButtons((name) => name === state.roi, (name) => { set({ roi: name === state.roi ? "" : name }); this.paint(); this.rois(); }); },
  async renew() {
    this.rois();
    const shown = { text: state.text || null, picture: state.picture || null, stimulus: state.picture ? null : state.seen || null };
    if (!Object.values(shown).some(Boolean)) { running?.(); newest = null; $("job").hidden = true; last.maps = null; empty("Type a sentence or give a picture: the response that each brain is expected to have appears on the cortex."); return; }
    const body = { shown, samples: state.spread === "1" ? 16 : 0, seed: Number(state.seed) };
    const against = this.contrast();
    if (Object.values(against).some(Boolean)) body.against = against;
    const words = this.words();
    fill($("downloads"), );
    last.maps = null;
    const done = await job("/api/encode", body);
    if (!done || state.tab !== "encode") return;
    last.words = words;
    last.contrast = Boolean(body.against);
    last.maps = Object.fromEntries(Object.entries(done.result).map(([name, one]) => [name, { values: floats(one.values), spread: one.spread && floats(one.spread) }]));
    last.id = done.id;
    this.paint();
    await this.told();
  },
  async paint() {
    const one = last.maps?.[state.subject];
    if (!one) return;
    const space = await cortex.space(state.subject);
    if (one !== last.maps?.[state.subject] || state.tab !== "encode") return; // something else was asked meanwhile
    const uncertain = state.shows === "spread" && one.spread;
    const name = `${uncertain ? `spread of single trials${last.contrast ? "' contrast" : ""} (z)` : last.contrast ? "contrast (z)" : "expected response (z)"}: ${last.words}`;
    paint(uncertain ? one.spread : one.values, name, { lit: state.roi && space.rois[state.roi] ? new Set(space.rois[state.roi]) : null });
  },
  async told() {
    const rows = [], maps = last.maps;
    for (const [subject, one] of Object.entries(maps)) {
      const space = await cortex.space(subject);
      const each = Object.entries(space.rois).map(([name, sites]) => [name, mean(sites, one.values), one.spread && mean(sites, one.spread)]).sort((a, b) => b[1] - a[1]);
      rows.push(h("h2", {}, h("button", { "aria-pressed": String(subject === state.subject), onclick: () => { $("subject").value = subject; $("subject").onchange(); } }, subject)),
        h("table", {}, h("tbody", {}, ...each.slice(0, subject === state.subject ? each.length : 3).map(([name, value, spread]) => h("tr", {}, h("th", {}, name), h("td.number", {}, value.toFixed(2)), h("td.number", {}, spread ? `± ${spread.toFixed(2)}` : ""))))));
    }
    if (maps !== last.maps) return; // something else was asked meanwhile
    const some = maps[state.subject]?.spread;
    fill($("result"), h("h2", {}, last.contrast ? "Mean contrast, by region" : "Mean expected response, by region"), ...rows,
      some ? h("p.quiet", {}, "± standard deviation of single trials around it") : null,
      some ? h("div.row", {}, ...["values", "spread"].map((which) => h("button", { "aria-pressed": String(state.shows === which), onclick: () => { set({ shows: which }); this.paint(); this.told(); } }, which === "values" ? "Show the response" : "Show its spread"))) : null);
    const kind = subjectFacts().geometry, place = `/api/jobs/${last.id}/maps/${encodeURIComponent(state.subject)}`;
    const forms = { png: "PNG", npy: "npy", ...(kind === "volume" && { "nii.gz": "NIfTI" }), ...(kind === "surface" && { "L.func.gii": "GIfTI left", "R.func.gii": "GIfTI right" }) };
    fill($("downloads"), h("span.quiet", {}, "Save the map:"), ...Object.entries(forms).map(([form, name]) => h("a", { href: `${place}.${form}`, download: `${state.subject}.${form}` }, name)));
  },
};

const mean = (sites, values) => sites.reduce((sum, site) => sum + values[site], 0) / Math.max(1, sites.length);

// --- tokens

const tokens = {
  async open() {
    const options = h("div");
    const { parts, find } = browser((one) => { options.replaceChildren(repeats(one)); renew(); });
    fill($("controls"), h("h2", {}, "Whose response"), ...parts, options);
    const one = await chosenStimulus(find);
    if (one && state.tab === "tokens") { options.replaceChildren(repeats(one)); await renew(); }
  },
  async renew() {
    fill($("rois"), );
    fill($("downloads"), );
    if (!state.stimulus) return;
    const sound = { swapped: list(state.swapped).filter((one) => /^\d+:\d+$/.test(one)).join(), masked: list(state.masked).filter((one) => /^\d+$/.test(one)).join() };
    if (sound.swapped !== state.swapped || sound.masked !== state.masked) set(sound); // what an address says wrongly
    const swapped = Object.fromEntries(list(state.swapped).map((one) => one.split(":").map(Number)));
    const done = await job("/api/tokens", { subject: state.subject, stimulus: state.stimulus, repeat: state.repeat === "" ? null : Number(state.repeat), swapped, masked: list(state.masked).map(Number), seed: Number(state.seed) });
    if (state.tab !== "tokens") return;
    if (!done) { if (state.swapped || state.masked) $("result").append(h("button", { onclick: () => { set({ swapped: "", masked: "" }); renew(); } }, "As measured")); return; }
    this.found = done.result;
    this.patch = ints(done.result.patch);
    this.values = floats((done.result.after ?? done.result.before).measured);
    this.told(swapped, new Set(list(state.masked).map(Number)));
  },
  light(token) {
    const lit = new Set();
    const first = token - (token % this.found.per_patch);
    this.patch.forEach((one, site) => { if (one === first) lit.add(site); });
    paint(this.values, "response (z), the token lit", { lit });
  },
  told(swapped, masked) {
    const { codes, num_codes, before, after } = this.found;
    const chosen = Number(state.token) < codes.length ? Number(state.token) : 0;
    const buttons = codes.map((code, at) => h(`button${masked.has(at) ? ".masked" : ""}${at in swapped ? ".swapped" : ""}`, { "aria-pressed": String(at === chosen), title: `token ${at}, code ${code}`, "data-token": at,
      onfocus: () => this.light(at), onmouseenter: () => this.light(at), onclick: () => { set({ token: String(at) }); this.told(swapped, masked); this.light(at); } }, String(swapped[at] ?? code)));
    const keep = (changes) => { set(changes); renew(); };
    const code = h("input", { type: "number", id: "in-code", min: 0, max: num_codes - 1, value: swapped[chosen] ?? codes[chosen], "aria-label": "Code in its place" });
    const swap = () => {
      if (!/^\d+$/.test(code.value) || Number(code.value) >= num_codes) { problem(new Refused(`code: expected a whole number from 0 to ${num_codes - 1}, got '${code.value}'. Give one of these.`)); return; }
      const more = { ...swapped, [chosen]: Number(code.value) }; if (more[chosen] === codes[chosen]) delete more[chosen]; keep({ swapped: Object.entries(more).map((pair) => pair.join(":")).join() });
    };
    const mask = () => keep({ masked: (masked.has(chosen) ? [...masked].filter((one) => one !== chosen) : [...masked, chosen]).join() });
    const said = (one) => one.captions[0] ?? "";
    const words = new Set(said(before).split(" "));
    const inPicture = this.found.sequence.find((part) => part.modality === "image");
    const side = inPicture ? Math.round(Math.sqrt(inPicture.tokens.length)) : 0;
    const others = this.found.sequence.filter((part) => part.modality !== "brain").map((part) => [h("h2", {}, `${part.modality === "text" ? "Caption that was seen" : "Picture that was seen"}: ${part.tokens.length} tokens`),
      part.modality === "text" ? h("div.tokens", { id: "words" }, h("span.opening", { title: `token ${part.opening} opens a text` }, "text"), ...part.tokens.map((token, at) => h("span.word", { title: `token ${token}` }, part.words[at] || "·")))
        : h("div.mosaic", { id: "mosaic", style: `grid-template-columns: repeat(${side}, 1fr); background-image: url("/api/stimuli/${encodeURIComponent(state.stimulus)}/picture.png")` }, ...part.tokens.map((token) => h("span", { title: `token ${token}` })))]).flat();
    const whole = this.found.sequence.reduce((sum, part) => sum + 1 + part.tokens.length, 1);
    fill($("result"), 
      h("p.quiet", { id: "whole" }, `In the joint vocabulary this trial is ${whole} tokens: begin, then ${this.found.sequence.map((part) => `${part.tokens.length} of the ${part.modality === "text" ? "caption" : part.modality === "image" ? "picture" : "brain"} behind one that opens them`).join(", ")}.`),
      h("h2", {}, `Brain: ${codes.length} tokens`), h("div.tokens", {}, ...buttons),
      h("div.row", {}, h("strong", {}, `Token ${chosen}`), h("label", {}, "code ", code), h("button", { id: "swap", onclick: swap }, "Swap"), h("button", { id: "mask", onclick: mask }, masked.has(chosen) ? "Show again" : "Mask"),
        h("button", { onclick: () => keep({ swapped: "", masked: "" }) }, "As measured")),
      h("h2", {}, "What the model says of it"),
      h("div.pictures", {}, ...[["as measured", before], ["changed", after]].filter(([, one]) => one).map(([name, one]) => h("figure", {}, one.pictures.length ? h("img", { src: png(one.pictures[0]), alt: `picture, ${name}` }) : null, h("figcaption", {}, name)))),
      h("table", {}, h("tbody", {}, h("tr", {}, h("th", {}, "as measured"), h("td", {}, said(before))),
        after ? h("tr", {}, h("th", {}, "changed"), h("td", { id: "after" }, ...said(after).split(" ").map((word) => h(words.has(word) ? "span" : "span.changed", {}, `${word} `)))) : null,
        ...Object.keys(before.log_p).map((target) => h("tr", {}, h("th", {}, `log p of the seen ${target === "image" ? "picture" : "caption"}`), h("td", {}, [before, after].filter(Boolean).map((one) => one.log_p[target].toFixed(1)).join(" → ")))))),
      ...others,
    );
    this.light(chosen);
  },
};

// --- scores

const scores = {
  async open() {
    fill($("rois"), );
    fill($("downloads"), );
    const directions = about.directions.filter((name) => name.endsWith("->brain"));
    if (!directions.includes(state.direction)) set({ direction: directions[0] ?? "" }); // a run without pictures
    const choose = h("select", { id: "in-direction", onchange: (event) => { set({ direction: event.target.value }); this.accuracy(); } }, ...directions.map((name) => h("option", {}, name)));
    choose.value = state.direction;
    this.records = await ask("/api/scores");
    if (state.tab !== "scores") return;
    const metrics = [...new Set(this.records.map((one) => one.metric))].sort();
    const chooser = (name, title, values) => {
      const select = h("select", { id: `in-${name}`, onchange: (event) => { set({ [name]: event.target.value }); this.table(); } }, h("option", { value: "" }, "all"), ...values.map((one) => h("option", {}, one)));
      select.value = state[name];
      return h("label", {}, `${title} `, select);
    };
    const known = (name) => [...new Set(this.records.map((one) => one[name] ?? "all sites"))].sort();
    fill($("controls"), h("h2", {}, "Each site"), h("label", {}, "How well it is predicted, in ", choose),
      h("p.quiet", {}, "Pearson's r between measured and expected responses, across held-out stimuli."), h("p", { id: "beside" }), h("h2", {}, "Table"), chooser("metric", "Metric", metrics), chooser("of", "Direction", known("direction")), chooser("whose", "Subject", known("subject")), chooser("where", "Region", known("roi")));
    this.place = h("div");
    fill($("result"), this.place, ...(this.records.length ? [h("h2", {}, "Report"), h("p", {}, h("a", { href: "/api/report", target: "_blank" }, "Open it on a page of its own")),
      h("iframe", { id: "report", src: "/api/report", sandbox: "", title: "The report: its tables and figures", loading: "lazy" })] : []));
    this.table();
    await this.accuracy();
  },
  async renew() { this.table(); },
  async accuracy() {
    const done = await job("/api/accuracy", { subject: state.subject, direction: state.direction }, ["stage"]);
    if (!done || state.tab !== "scores") return;
    const values = floats(done.result[state.subject].values);
    paint(values, "voxel r");
    this.beside();
    fill($("downloads"), h("a", { href: `/api/jobs/${done.id}/maps/${encodeURIComponent(state.subject)}.png`, download: `${state.subject}.png` }, "Save as PNG"));
  },
  // A figure says nothing without its neighbours.
  beside() {
    const whole = this.records.find((one) => one.metric === "voxel_r" && one.direction === state.direction && one.subject === state.subject && !one.roi && one.estimator === "mean");
    const told = whole && ["value", "floor", "constant", "baseline", "ceiling"].filter((name) => whole[name] !== null).map((name) => `${{ value: "mean over sites", baseline: "linear" }[name] ?? name} ${whole[name].toFixed(2)}`);
    fill($("beside"), whole ? `${state.subject}: ${told.join(", ")}.` : `Floor, linear baseline and ceiling of ${state.subject} come with its scores: brainjanus evaluate RUN`);
  },
  table() {
    if (!this.records.length) { fill(this.place, h("p", {}, "This run was not scored yet: brainjanus evaluate RUN")); return; }
    const [by, down] = [state.sort.replace("-", ""), state.sort.startsWith("-") ? -1 : 1];
    const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a ?? "").localeCompare(String(b ?? "")));
    const wanted = { metric: state.metric, direction: state.of, subject: state.whose, roi: state.where }; // one value each: no column
    const columns = ["direction", "subject", "roi", "metric", "estimator", "value", "floor", "baseline", "ceiling", "p", "n"].filter((name) => !wanted[name]);
    const rows = this.records.filter((one) => Object.entries(wanted).every(([name, value]) => !value || (one[name] ?? "all sites") === value)).sort((a, b) => down * order(a[by], b[by]));
    const number = (value) => (typeof value === "number" ? (Number.isInteger(value) ? String(value) : value.toFixed(3)) : value ?? "");
    fill(this.place, h("h2", {}, `${rows.length} figures`), rows.length > MOST_ROWS ? h("p.quiet", {}, `The first ${MOST_ROWS} in this order are shown; choose fewer at the left.`) : null, h("div.scroll", { tabIndex: 0 }, h("table.figures", {}, h("thead", {}, h("tr", {}, ...columns.map((name) => h("th", { scope: "col", "aria-sort": name === by ? (down > 0 ? "ascending" : "descending") : "none" },
      h("button", { onclick: () => { set({ sort: state.sort === name ? `-${name}` : name }); this.table(); } }, name, name === by ? (down > 0 ? " ↑" : " ↓") : ""))))),
      h("tbody", {}, ...rows.slice(0, MOST_ROWS).map((one) => h("tr", {}, ...columns.map((name) => h(typeof one[name] === "number" ? "td.number" : "td", {}, String(number(one[name] ?? (name === "roi" ? "all sites" : null)))))))))));
  },
};

// --- the whole

const views = { decode, encode, tokens, scores };
const renew = () => views[state.tab].renew().catch(problem);

async function open(tab) {
  set({ tab }, tab !== state.tab);
  fade(["stage"], true);
  $("main").dataset.tab = tab;
  for (const button of document.querySelectorAll("[role=tab]")) button.setAttribute("aria-selected", String(button.dataset.tab === tab));
  fill($("result"), );
  fill($("controls"), );
  fill($("downloads"), );
  await views[tab].open().catch(problem);
}

async function begin() {
  about = await ask("/api/about");
  document.title = `${about.run} · BrainJanus`;
  $("about").textContent = `${about.run} on ${about.dataset}: ${about.subjects.length} subject${about.subjects.length === 1 ? "" : "s"}, ${about.stimuli} held-out stimuli`;
  if (!about.subjects.some((one) => one.name === state.subject)) set({ subject: about.subjects[0].name });
  cortex = new Cortex($("cortex"), $("views"), $("hover"), $("legend"), state.view, (view) => set({ view }));
  $("subject").append(...about.subjects.map((one) => h("option", { value: one.name }, `${one.name} (${one.sites} ${one.kind})`)));
  $("subject").value = state.subject;
  $("subject").onchange = () => { set({ subject: $("subject").value, hidden: "", roi: "", repeat: "", swapped: "", masked: "" });
    if (state.tab === "encode" && last.maps) { encode.rois(); encode.paint(); encode.told(); } else open(state.tab); };
  for (const button of document.querySelectorAll("[role=tab]")) {
    button.onclick = () => open(button.dataset.tab);
    button.onkeydown = (event) => { const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key]; if (step) { const next = TABS[(TABS.indexOf(button.dataset.tab) + step + 4) % 4]; $(`tab-${next}`).focus(); } };
  }
  await open(TABS.includes(state.tab) ? state.tab : "decode");
}

$("theme").onclick = () => { const next = { "": "dark", dark: "light", light: "" }[document.documentElement.dataset.theme ?? ""];
  if (next) document.documentElement.dataset.theme = next; else delete document.documentElement.dataset.theme; localStorage.theme = next; cortex?.recolour(); };
if (localStorage.theme) document.documentElement.dataset.theme = localStorage.theme;
addEventListener("hashchange", () => location.reload());
begin().catch(problem);
