// Points of the latent space, and how the address names them.
//
//   7:3        row 3 of Sample with seed 7;  7:3:0.8 at temperature 0.8
//   row:12     the mean of the map's row 12
//   z:...      any latent: base64url of its float32 numbers

import {fromBase64, toBase64} from "./rpc.js";

/** The latent that a name stands for, a Float32Array. Throws Error if it is no point of the model. */
export async function resolve(name, model) {
  if (name.startsWith("z:")) {
    if (!/^z:[\w-]*$/.test(name)) throw new Error("The address holds a point that is not base64url.");
    const bytes = fromBase64(name.slice(2).replaceAll("-", "+").replaceAll("_", "/"));
    if (bytes.length !== 4 * model.size) throw new Error("The address holds a point of another model.");
    return new Float32Array(bytes.buffer);
  }
  if (name.startsWith("row:")) {
    const row = name.slice(4);
    if (!model.map?.complete || !/^\d+$/.test(row) || !(Number(row) in model.map.means)) throw new Error("The address names a row that this model's map does not have.");
    return Float32Array.from(model.map.means[Number(row)]);
  }
  const [, seed, index = "0", temperature = "1"] = /^(\d+)(?::(\d+)(?::(\d+(?:\.\d+)?))?)?$/.exec(name) ?? [];
  if (!seed) throw new Error(`The address names no point: ${name}`);
  if (model.lacks("sample")) return new Float32Array(model.size);
  return (await model.sample(seed, index, 1, Number(temperature))).z[0];
}

export function nameOf(z) {
  const bytes = new Uint8Array(Float32Array.from(z).buffer);
  return `z:${toBase64(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
}

/** The map's rows nearest to a latent: [row, distance], nearest first. */
export function nearest(z, map, count) {
  const found = map.means.map((mean, row) => {
    let sum = 0;
    for (let i = 0; i < mean.length; i++) sum += (mean[i] - z[i]) ** 2;
    return [row, Math.sqrt(sum)];
  });
  return found.sort((a, b) => a[1] - b[1]).slice(0, count);
}
