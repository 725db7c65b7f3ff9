// What the page knows of a model: GetModel and GetMap, read once for each version.

import {call, fromBase64, fromTensor, toTensor} from "./rpc.js";

const MAX_UNITS = 256;  // larger latents get no sliders

export class Model {
  static async load(name, version) {
    const info = await call("GetModel", {model: name, version});
    const model = new Model(info);
    if (!model.lacks("map")) {
      try { model.map = readMap(await call("GetMap", model.named), model); }
      catch (error) {
        if (!["unimplemented", "permission_denied"].includes(error.code)) throw error;
        model.mapRefusal = error.code === "permission_denied" ? error.message : "the server is older than maps";
      }
    }
    return model;
  }

  constructor(info) {
    const axes = Object.fromEntries((info.axes ?? []).map((axis) => [axis.name, Number(axis.default)]));
    const at = (dims) => (dims ?? []).map((dim) =>
      dim.axis ? axes[dim.axis] / Number(dim.divisor ?? 1) : Number(dim.length));
    this.info = info;
    this.name = info.servedBy.model;
    this.version = info.servedBy.version;
    this.digest = info.servedBy.digest;
    this.kind = info.kind;
    this.x = at(info.xShape);
    this.z = at(info.zShape);
    this.size = this.z.reduce((a, b) => a * b, 1);
    this.maxRows = Number(info.limits?.maxRows ?? 64);
    this.range = [Number(info.xMin ?? 0), Number(info.xMax ?? 0)];
    this.columns = info.columns ?? [];
    this.sampleRate = info.sampleRate ?? 0;
    this.map = null;
    this.mapRefusal = this.lacks("map") ?? "it keeps none";  // why there is no map
    const pictures = this.kind === "image" && !this.lacks("images") && !this.lacks("png");
    this.format = pictures ? "FORMAT_PNG" : this.kind === "text" ? "FORMAT_TEXT" : "FORMAT_RAW";
    this.isPicture = pictures;
  }

  /** Why the model cannot do this; undefined: it can. */
  lacks(capability) { return this.info.unavailable?.[capability]; }

  get isSpatial() { return this.z.length === 3; }
  get hasUnits() { return this.size <= MAX_UNITS; }

  /** The units that get sliders, those of most KL first, and the collapsed ones. */
  units() {
    const all = Array.from({length: this.size}, (_, i) => i);
    const kl = this.map?.unitKl;
    if (kl?.length !== this.size) return {active: all, collapsed: []};
    all.sort((i, j) => kl[j] - kl[i]);
    return {active: all.filter((i) => this.map.active[i]), collapsed: all.filter((i) => !this.map.active[i])};
  }

  /** Decode latents; returns rows as `show` draws them. */
  async decode(latents) {
    const rows = [];
    for (let at = 0; at < latents.length; at += this.maxRows) {
      const part = latents.slice(at, at + this.maxRows);
      const response = await call("Decode", {...this.named, z: toTensor(part, this.z), format: this.format});
      rows.push(...readRows(response.x));
    }
    return rows;
  }

  /** Rows of Sample and their latents. */
  async sample(seed, offset, count, temperature) {
    const response = await call("Sample", {
      ...this.named, seed: String(seed), offset: String(offset), count, temperature, includeZ: true, format: this.format,
    });
    return {rows: readRows(response.x), z: fromTensor(response.z)};
  }

  /** The path between two latents: rows and latents. path: SLERP | LERP */
  async interpolate(a, b, steps, path) {
    const response = await call("Interpolate", {
      ...this.named, start: {z: toTensor([a], this.z)}, end: {z: toTensor([b], this.z)}, steps,
      path: `INTERPOLATION_PATH_${path}`, includeZ: true, format: this.format,
    });
    return {rows: readRows(response.x), z: fromTensor(response.z)};
  }

  get named() { return {model: this.name, version: this.version}; }
}

/** One value for each row: {file} of PNG, {text} or {values}. */
export function readRows(rows) {
  if (rows.text) return (rows.text.texts ?? []).map((text) => ({text}));
  const files = (rows.images ?? rows.png)?.files;
  if (files) return files.map((file) => ({file}));
  return fromTensor(rows.tensor).map((values) => ({values}));
}

function readMap(response, model) {
  const means = fromTensor(response.mean);
  const [center] = fromTensor(wrapped(response.center));
  const classes = response.classes ?? [];
  return {
    means,
    count: means.length,
    complete: means[0]?.length === model.size,  // whole latents, not the means of their channels
    center,
    components: fromTensor(response.components),
    positions: fromTensor(response.position),
    labels: (response.label ?? []).map((label) => classes[label]),
    error: response.reconstructionError ?? [],
    kl: response.kl ?? [],
    unitKl: response.unitKl ? fromTensor(wrapped(response.unitKl))[0] : [],
    active: response.active ?? [],
    sprites: response.sprites ?? "",
    spriteWidth: response.spriteWidth ?? 0,
    spriteHeight: response.spriteHeight ?? 0,
    rows: response.x ? readRows(response.x) : [],
  };
}

/** A tensor of one row. */
function wrapped(tensor) { return {...tensor, shape: ["1", ...tensor.shape]}; }

/** What type of image these bytes are, for a data: address. */
export function imageType(base64) {
  const start = fromBase64(base64.slice(0, 16));
  if (start[0] === 0xff) return "image/jpeg";
  return start[0] === 0x52 ? "image/webp" : "image/png";
}
