// One map on one brain: the inflated surface by NiiVue, a volume as slices, sensors over time as a grid, bars where sites
// have no place.

import { ask, ints } from "./api.js";

const NEAR_MM = 6;
const LEFT = 44, TOP = 8, BELOW = 22; // around the grid, in pixels
const VIEWS = { behind: [0, 12], left: [270, 8], right: [90, 8], below: [0, -75] };
const MOST_SLICES = 30, ROOM = 14; // of a volume; pixels above each, for its place
// red for more, blue for less, as in the report; a colour a third of the way
const MORE = { R: [253, 239, 178, 103], G: [219, 138, 24, 0], B: [199, 98, 43, 31], A: [200, 255, 255, 255], I: [0, 85, 170, 255] };
const LESS = { R: [209, 103, 33, 5], G: [229, 169, 102, 48], B: [240, 207, 172, 97], A: [200, 255, 255, 255], I: [0, 85, 170, 255] };
const LIT = { R: [255, 255], G: [214, 140], B: [0, 0], A: [255, 255], I: [0, 255] };

export class Cortex {
  // view: from where a surface is seen; chosen: told another one.
  constructor(canvas, views, hover, legend, view, chosen) {
    Object.assign(this, { canvas, views, hoverLine: hover, legend, view, chosen, spaces: new Map(), subject: null, values: null, label: "" });
    this.kind = null;
    canvas.parentElement.addEventListener("keydown", (event) => this.turned(event), true); // before NiiVue's own keys
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.recolour());
    new ResizeObserver(() => (this.flat() ? this.values && this[this.kind]() : this.fit())).observe(canvas.parentElement);
  }

  async space(subject) {
    if (!this.spaces.has(subject)) {
      const space = await ask(`/api/spaces/${encodeURIComponent(subject)}`);
      space.index = ints(space.index);
      space.roisOf = new Array(space.sites).fill("");
      for (const [name, sites] of Object.entries(space.rois)) {
        space.rois[name] = ints(sites);
        for (const site of space.rois[name]) space.roisOf[site] += (space.roisOf[site] && ", ") + name;
      }
      this.spaces.set(subject, space);
    }
    return this.spaces.get(subject);
  }

  // values: one a site. limit: where colours end. lit: sites that are marked.
  async show(subject, values, { label = "response (z)", limit = null, lit = null } = {}) {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const space = await this.space(subject);
    Object.assign(this, { subject, values, label, lit });
    this.limit = limit ?? span(values);
    const kind = { surface: "surface", volume: "slices", sensors: "grid" }[space.geometry] ?? "bars";
    if (kind !== this.kind) { this.kind = kind; this.becoming = this.become(kind); }
    await this.becoming;
    if (turn !== this.turn) return;
    if (kind === "surface") this.paintSurface(space);
    else this[kind]();
    this.drawLegend();
    this.canvas.dataset.shown = `${subject} ${label}`;
  }

  async become(kind) {
    const fresh = this.canvas.cloneNode();
    this.canvas.replaceWith(fresh);
    this.canvas = fresh;
    fresh.addEventListener("pointermove", (event) => this.pointed(event));
    this.views.replaceChildren();
    if (this.flat()) return;
    this.nv = new niivue.Niivue({ backColor: [0, 0, 0, 0], show3Dcrosshair: false, isOrientCube: false, dragAndDropEnabled: false,
      isColorbar: false, logLevel: "error", isResizeCanvas: true, crosshairWidth: 0 });
    this.nv.addColormap("more", MORE);
    this.nv.addColormap("less", LESS);
    this.nv.addColormap("lit", LIT);
    await this.nv.attachToCanvas(fresh);
    this.nv.setSliceType(this.nv.sliceTypeRender);
    await this.nv.loadMeshes(["left", "right"].map((side) => ({ url: `/api/mesh/${side}.mz3`, name: `${side}.mz3`, rgba255: [205, 205, 205, 255],
        layers: [{ url: `/api/depth/${side}.mz3`, name: `${side}.depth.mz3`, colormap: "gray", colormapInvert: true, cal_min: -1.2, cal_max: 1.6, opacity: 0.55 }] })));
    for (const name of Object.keys(VIEWS)) {
      const button = document.createElement("button");
      button.textContent = name;
      button.onclick = () => { this.look(name); this.chosen(name); };
      this.views.append(button, " ");
    }
    this.look(this.view in VIEWS ? this.view : "behind");
    this.fit();
    this.recolour();
  }

  flat() { return this.kind !== "surface"; } // drawn by hand, without WebGL

  // Both hemispheres side by side fill a wide stage, and stay inside of a narrow one.
  fit() {
    if (!this.nv || !this.nv.gl || this.flat()) return;
    const { clientWidth: wide, clientHeight: high } = this.canvas.parentElement;
    this.nv.setScale(Math.min(1.55, 1.2 * Math.max(1, wide / high)));
  }

  look(name) {
    this.view = name;
    this.nv.setRenderAzimuthElevation(...VIEWS[name]);
    for (const button of this.views.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.textContent === name));
  }

  // Arrows turn a surface.
  turned(event) {
    if (event.key === "Tab" || event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation();
    const [across, up] = { ArrowLeft: [10, 0], ArrowRight: [-10, 0], ArrowUp: [0, 10], ArrowDown: [0, -10] }[event.key] ?? [0, 0];
    if (this.kind !== "surface" || !(across || up)) return;
    event.preventDefault();
    this.nv.setRenderAzimuthElevation(this.nv.scene.renderAzimuth + across, Math.max(-90, Math.min(90, this.nv.scene.renderElevation + up)));
  }

  // Takes the map away.
  async clear(subject) {
    const space = await this.space(subject);
    if (this.values) await this.show(subject, new Float32Array(space.sites).fill(NaN), { label: "nothing is shown", limit: 1 });
    delete this.canvas.dataset.shown;
  }

  // The background is that of the page.
  recolour() {
    if (!this.nv || this.flat()) return;
    const colour = getComputedStyle(this.canvas.closest("#stage")).backgroundColor.match(/[\d.]+/g).slice(0, 3).map((part) => part / 255);
    this.nv.opts.backColor = [...colour, 1];
    this.nv.drawScene();
  }

  layer(values, colours) {
    return { opacity: 0.92, nFrame4D: 1, frame4D: 0, outlineBorder: 0, cal_minNeg: NaN, cal_maxNeg: NaN, colormapType: 0, global_min: -this.limit, global_max: this.limit,
      isTransparentBelowCalMin: true, isAdditiveBlend: false, colorbarVisible: false, showLegend: false, values, ...colours };
  }

  paintSurface(space) {
    for (const [which, mesh] of this.nv.meshes.entries()) {
      const first = which ? space.left_vertices : 0;
      const spread = (of) => { const all = new Float32Array(mesh.pts.length / 3).fill(NaN); space.index.forEach((vertex, site) => {
        if (vertex >= first && vertex < first + all.length) all[vertex - first] = of(site); }); return filled(mesh.tris, all); };
      const shown = spread((site) => this.values[site]);
      const layers = [this.layer(shown, { colormap: "more", colormapNegative: "less", useNegativeCmap: true, cal_min: this.limit * 0.08, cal_max: this.limit })];
      if (this.lit) layers.push(this.layer(spread((site) => (this.lit.has(site) ? 1 : 0)), { colormap: "lit", useNegativeCmap: false, cal_min: 0.5, cal_max: 1, opacity: 0.95 }));
      mesh.layers = [mesh.layers[0], ...layers];
      mesh.updateMesh(this.nv.gl);
    }
    this.nv.drawScene();
  }

  paper() {
    const { clientWidth: wide, clientHeight: high } = this.canvas.parentElement;
    const scale = devicePixelRatio, pen = this.canvas.getContext("2d");
    Object.assign(this.canvas, { width: wide * scale, height: high * scale });
    pen.scale(scale, scale);
    return { wide, high, pen };
  }

  // Axial slices from below to above, seen from above: left is left, the front is up.
  slices() {
    const { wide, high, pen } = this.paper(), space = this.spaces.get(this.subject);
    const { low, size, heights } = (space.box ??= boxed(space));
    const step = Math.ceil(size[2] / MOST_SLICES), count = Math.ceil(size[2] / step);
    const fitting = (columns) => Math.min(wide / columns / (size[0] + 1), (high / Math.ceil(count / columns) - ROOM) / (size[1] + 1));
    const columns = Array.from({ length: count }, (_, at) => at + 1).reduce((best, one) => (fitting(one) > fitting(best) ? one : best), 1);
    const pixel = fitting(columns), column = wide / columns, row = high / Math.ceil(count / columns);
    this.layout = { pixel, columns, column, row, step, count };
    pen.font = "11px system-ui, sans-serif";
    const quiet = getComputedStyle(this.canvas.closest("#stage")).getPropertyValue("--line"), ink = getComputedStyle(this.canvas).color;
    for (let slice = 0; slice < count; slice++) {
      pen.fillStyle = ink;
      pen.fillText(`z ${Math.round(heights(slice * step))}${slice ? "" : " mm, left is left"}`, (slice % columns) * column + 4, Math.floor(slice / columns) * row + 11);
    }
    space.places.forEach(([x, y, z], site) => {
      if ((z - low[2]) % step) return;
      const slice = (z - low[2]) / step, value = this.values[site];
      pen.fillStyle = this.lit?.has(site) ? "#ff9d00" : Math.abs(value) >= 0.08 * this.limit ? `rgb(${tint(value / this.limit)})` : quiet;
      pen.fillRect((slice % columns) * column + (x - low[0] + 0.5) * pixel, Math.floor(slice / columns) * row + ROOM + (low[1] + size[1] - 1 - y) * pixel, pixel + 0.3, pixel + 0.3);
    });
  }

  // Sensors from top to bottom, time from left to right.
  grid() {
    const { wide, high, pen } = this.paper(), { names, times_sec: times, index } = this.spaces.get(this.subject);
    const cells = new ImageData(times.length, names.length);
    this.values.forEach((value, site) => {
      if (!Number.isFinite(value)) return;
      const colour = this.lit?.has(site) ? [255, 157, 0] : tint(value / this.limit);
      cells.data.set([...colour, 255], 4 * index[site]);
    });
    const small = Object.assign(document.createElement("canvas"), { width: times.length, height: names.length });
    small.getContext("2d").putImageData(cells, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, LEFT, TOP, wide - LEFT - 8, high - TOP - BELOW);
    pen.fillStyle = getComputedStyle(this.canvas).color;
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "right";
    const row = (high - TOP - BELOW) / names.length, every = Math.ceil(13 / row);
    names.forEach((name, at) => { if (at % every === 0) pen.fillText(name, LEFT - 4, TOP + (at + 0.5) * row + 4, LEFT - 6); });
    pen.textAlign = "center";
    const column = (wide - LEFT - 8) / times.length, step = Math.ceil(60 / column);
    times.forEach((time, at) => { if (at % step === 0) pen.fillText(`${Math.round(1000 * time)} ms`, LEFT + (at + 0.5) * column, high - 6); });
  }

  bars() {
    const { wide, high, pen } = this.paper();
    const step = (wide - 20) / this.values.length, middle = high / 2;
    this.values.forEach((value, site) => {
      if (!Number.isFinite(value)) return;
      pen.fillStyle = this.lit?.has(site) ? "#ff9d00" : value > 0 ? "#b2182b" : "#2166ac";
      const tall = Math.max(-1, Math.min(1, value / this.limit)) * (middle - 12);
      pen.fillRect(10 + site * step, Math.min(middle, middle - tall), Math.max(0.6, step - 1), Math.abs(tall));
    });
    pen.fillStyle = "#888";
    pen.fillRect(10, middle, wide - 20, 1);
  }

  drawLegend() {
    const bar = document.createElement("canvas");
    Object.assign(bar, { width: 256, height: 8 });
    const pen = bar.getContext("2d");
    for (let x = 0; x < 256; x++) {
      pen.fillStyle = `rgb(${tint((x - 127.5) / 127.5)})`;
      pen.fillRect(x, 0, 1, 8);
    }
    this.legend.replaceChildren((-this.limit).toFixed(2), bar, this.limit.toFixed(2), ` ${this.label}`);
  }

  pointed(event) {
    if (!this.values || this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      const site = this.siteAt(event.offsetX, event.offsetY);
      this.told(site);
    });
  }

  told(site) {
    const space = this.spaces.get(this.subject);
    this.site = site;
    const sensor = this.kind === "grid" && site !== null ? ` (${space.names[Math.floor(space.index[site] / space.times_sec.length)]}, ${
      Math.round(1000 * space.times_sec[space.index[site] % space.times_sec.length])} ms)` : "";
    this.hoverLine.textContent = site === null ? "\u00a0" : `site ${site}${sensor}${space.roisOf[site] ? `, ${space.roisOf[site]}` : ""}: ${
      Number.isFinite(this.values[site]) ? this.values[site].toFixed(2) : "not shown to the model"}`;
  }

  siteAt(x, y) {
    const space = this.spaces.get(this.subject);
    if (this.kind === "slices") {
      const { pixel, columns, column, row, step } = this.layout, { low, size, sites } = space.box;
      const slice = Math.floor(y / row) * columns + Math.floor(x / column);
      const at = [Math.floor((x % column) / pixel - 0.5) + low[0], low[1] + size[1] - 1 - Math.floor((y % row - ROOM) / pixel), low[2] + slice * step];
      return sites.get(at.join()) ?? null;
    }
    if (this.kind === "grid") {
      const { clientWidth: wide, clientHeight: high } = this.canvas, { names, times_sec: times, index } = space;
      const column = Math.floor((x - LEFT) / (wide - LEFT - 8) * times.length), row = Math.floor((y - TOP) / (high - TOP - BELOW) * names.length);
      const found = column >= 0 && row >= 0 && column < times.length && row < names.length ? index.indexOf(row * times.length + column) : -1;
      return found < 0 ? null : found;
    }
    if (this.kind === "bars") {
      const site = Math.floor((x - 10) / ((this.canvas.clientWidth - 20) / this.values.length));
      return site >= 0 && site < this.values.length ? site : null;
    }
    const nv = this.nv;
    nv.mousePos = [x * nv.uiData.dpr, y * nv.uiData.dpr];
    nv.scene.crosshairPos = [-9, -9, -9];
    nv.uiData.mouseDepthPicker = true;
    nv.drawScene(); // where the pointer is
    nv.drawScene(); // the picture again
    if (nv.scene.crosshairPos[0] < -8) return null;
    const [px, py, pz] = nv.frac2mm(nv.scene.crosshairPos);
    let best = [NEAR_MM, null]; // between measured vertices, the nearest of them
    space.index.forEach((vertex, site) => {
      const which = vertex >= space.left_vertices ? 1 : 0, at = 3 * (vertex - which * space.left_vertices), points = nv.meshes[which].pts;
      const far = Math.hypot(points[at] - px, points[at + 1] - py, points[at + 2] - pz);
      if (far < best[0]) best = [far, site];
    });
    return best[1];
  }
}

// Where the voxels of a volume lie, along the axes from left to right, back to front, below to above; space.places: of each.
function boxed(space) {
  const { shape, affine, index } = space, free = [0, 1, 2];
  const axes = [0, 1, 2].map((world) => { // the voxel axis that goes most along it
    const axis = free.reduce((best, one) => (Math.abs(affine[world][one]) > Math.abs(affine[world][best]) ? one : best));
    free.splice(free.indexOf(axis), 1);
    return { axis, up: affine[world][axis] > 0 };
  });
  space.places = Array.from(index, (flat) => {
    const voxel = [Math.floor(flat / (shape[1] * shape[2])), Math.floor(flat / shape[2]) % shape[1], flat % shape[2]];
    return axes.map(({ axis, up }) => (up ? voxel[axis] : shape[axis] - 1 - voxel[axis]));
  });
  const ends = (choose) => [0, 1, 2].map((axis) => space.places.reduce((best, place) => choose(best, place[axis]), space.places[0][axis]));
  const low = ends(Math.min), high = ends(Math.max), size = low.map((least, axis) => high[axis] - least + 1);
  const sites = new Map(space.places.map((place, site) => [place.join(), site]));
  const { axis, up } = axes[2], millimetres = affine[2][axis];
  const first = affine[2][3] + (up ? 0 : millimetres * (shape[axis] - 1));
  return { low, size, sites, heights: (slice) => first + Math.abs(millimetres) * (low[2] + slice) };
}

// The colour of a share of the limit, from -1 to 1.
function tint(share) {
  const map = share < 0 ? LESS : MORE, place = Math.min(1, Math.abs(share)) * 3, low = Math.min(2, Math.floor(place)), part = place - low;
  return ["R", "G", "B"].map((name) => Math.round(map[name][low] * (1 - part) + map[name][low + 1] * part));
}

// A vertex that was not measured is drawn with the mean of its neighbours if most of them were; 0 is not drawn.
function filled(triangles, values) {
  const sum = new Float32Array(values.length), known = new Uint8Array(values.length), all = new Uint8Array(values.length);
  for (let at = 0; at < triangles.length; at++) {
    const own = triangles[at], next = triangles[at % 3 === 2 ? at - 2 : at + 1]; // each inner edge once in either direction
    all[own] += 1;
    if (!Number.isNaN(values[next])) { sum[own] += values[next]; known[own] += 1; }
  }
  return values.map((value, at) => (Number.isNaN(value) ? (known[at] && 2 * known[at] >= all[at] ? sum[at] / known[at] : 0) : value));
}

// The 99th percentile of what is there.
export function span(values) {
  const sizes = Float32Array.from(values).filter(Number.isFinite).map(Math.abs).sort();
  return sizes.length ? Math.max(1e-3, sizes[Math.floor(0.99 * (sizes.length - 1))]) : 1;
}
