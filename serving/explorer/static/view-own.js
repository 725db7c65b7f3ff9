// Own data: where it lies, its reconstruction, the error of each element, percentiles, neighbors.

import {nearest} from "./points.js";
import {call, fromTensor, toBase64, toTensor} from "./rpc.js";
import {decodePixels, gallery, heat, make, show} from "./show.js";
import {readRows} from "./model.js";

const NEIGHBORS = 8;

export const own = {
  title: "Own data",
  suits: (model) => model.isPicture || model.kind === "text" || model.columns.length > 0,
  mount: (element, app) => new OwnView(element, app),
};

class OwnView {
  constructor(element, app) {
    this.app = app;
    this.result = make("div", {"aria-live": "polite"});
    element.append(this.#input(), this.result);
  }

  #input() {
    const {model} = this.app;
    if (model.kind === "text") return this.#form("Text", "", (text) => ({text: {texts: [text]}}));
    if (model.columns.length) {
      const names = model.columns.map((column) => column.name).join(",");
      return this.#form(`One row of CSV: ${names}`, "", (text) => ({tensor: toTensor([readCsv(text, model.columns)], model.x)}));
    }
    const fit = make("select", {}, make("option", {value: "FIT_CROP", textContent: "crop to its shape"}), make("option", {value: "FIT_RESIZE", textContent: "resize to its shape"}));
    const picker = make("input", {type: "file", accept: "image/png,image/jpeg,image/webp", "aria-label": "image file", onchange: () => this.#file(picker.files[0], fit.value)});
    const area = make("div", {id: "drop"}, make("p", {textContent: "Drop an image here, or choose one: PNG, JPEG or WebP."}), picker, make("label", {}, " and ", fit));
    for (const kind of ["dragenter", "dragover"]) area.addEventListener(kind, (event) => { event.preventDefault(); area.classList.add("over"); });
    area.addEventListener("dragleave", () => area.classList.remove("over"));
    area.addEventListener("drop", (event) => { event.preventDefault(); area.classList.remove("over"); this.#file(event.dataTransfer.files[0], fit.value); });
    return area;
  }

  #form(label, value, rows) {
    const input = make("input", {type: "text", name: "own", value, required: true, size: 40});
    return make("form", {className: "bar", onsubmit: (event) => { event.preventDefault(); this.#guard(() => this.#analyze(rows(input.value))); }},
      make("label", {}, `${label} `, input), make("button", {textContent: "Encode"}));
  }

  #file(file, fit) {
    if (!file) return;
    this.#guard(async () => {
      const bytes = new Uint8Array(await file.arrayBuffer());
      await this.#analyze({images: {files: [toBase64(bytes)], fit}});
    });
  }

  async #guard(work) {
    this.result.replaceChildren();
    try { await work(); } catch (error) { this.result.replaceChildren(make("p", {role: "alert", textContent: error.message})); }
  }

  async #analyze(x) {
    const {app} = this;
    const {model} = app;
    const scores = !model.lacks("score");
    const contributions = scores && !model.lacks("contributions");
    const [encoded, rebuilt] = await Promise.all([
      call("Encode", {...model.named, x}),
      call("Reconstruct", {...model.named, x, format: model.format, includeScores: scores, includeContributions: contributions}),
    ]);
    const [mean] = fromTensor(encoded.mean);
    const [row] = readRows(rebuilt.x);
    const figures = [make("figure", {}, show(row, model, "reconstruction"), make("figcaption", {textContent: "Reconstruction"}))];
    if (x.images) figures.unshift(make("figure", {}, show({file: x.images.files[0]}, model, "your image"), make("figcaption", {textContent: "Your image, as you sent it"})));
    if (contributions && rebuilt.contributions) figures.push(this.#errors(fromTensor(rebuilt.contributions)[0]));
    const parts = [make("div", {className: "pair"}, ...figures),
      make("div", {className: "buttons"}, make("button", {type: "button", textContent: "Show where it lies", onclick: () => app.go({view: "map"})}))];
    if (scores) parts.push(this.#percentiles(rebuilt));
    if (model.map?.complete) parts.push(this.#neighbors(mean));
    this.result.replaceChildren(...parts);
    await app.move(mean);
  }

  #errors(values) {
    const {model} = this.app;
    if (model.columns.length) {
      const order = [...values.keys()].sort((i, j) => values[j] - values[i]).slice(0, 10);
      return make("figure", {}, make("table", {}, make("tbody", {}, ...order.map((i) => make("tr", {}, make("th", {scope: "row", textContent: model.columns[i].name}), make("td", {textContent: `${values[i].toFixed(2)} nats`}))))),
        make("figcaption", {textContent: "What each column adds to the error"}));
    }
    const [height, width, channels = 1] = model.x;
    const sums = Float32Array.from({length: height * width}, (_, i) => { let sum = 0; for (let c = 0; c < channels; c++) sum += values[i * channels + c]; return sum; });
    return make("figure", {}, heat(sums, width, height, "error of each pixel", false), make("figcaption", {textContent: "What each pixel adds to the error"}));
  }

  /** Where the scores lie among those of the training rows. */
  #percentiles(response) {
    const training = this.app.model.info.trainingScores;
    const line = (name, value, quantiles) => {
      const text = `${value.toFixed(2)} nats`;
      const share = quantiles?.length ? percentile(value, training.levels, quantiles) : null;
      return make("tr", {}, make("th", {scope: "row", textContent: name}), make("td", {textContent: share === null ? text : `${text}: above ${share.toFixed(share > 99 || share < 1 ? 1 : 0)} % of the training rows`}));
    };
    const body = make("tbody", {},
      line("Reconstruction error", response.reconstructionError[0], training?.reconstructionError),
      line("KL", response.kl[0], training?.kl), line("ELBO", response.elbo[0], training?.elbo));
    if (response.isOutlier) body.append(make("tr", {}, make("th", {scope: "row", textContent: "Outlier"}), make("td", {textContent: response.isOutlier[0] ? `yes, beyond ${response.threshold.toFixed(2)} nats` : "no"})));
    return make("table", {}, body);
  }

  #neighbors(mean) {
    const {app} = this;
    const {map} = app.model;
    const found = nearest(mean, map, NEIGHBORS);
    const holder = make("figure", {});
    this.#thumbnails(found.map(([row]) => row)).then((rows) => {
      if (!rows) return;
      holder.append(gallery("strip", rows, app.model, (i) => `training row ${found[i][0]}${map.labels[found[i][0]] ? `, label ${map.labels[found[i][0]]}` : ""}, distance ${found[i][1].toFixed(2)}`,
        (i) => app.move(map.means[found[i][0]], `row:${found[i][0]}`)), make("figcaption", {textContent: "The nearest training rows"}));
    });
    return holder;
  }

  async #thumbnails(rows) {
    const {map} = this.app.model;
    if (map.rows.length) return rows.map((row) => map.rows[row]);
    if (!map.sprites) return null;
    const sheet = await decodePixels(map.sprites);
    const columns = Math.floor(sheet.width / map.spriteWidth);
    return rows.map((row) => {
      const canvas = make("canvas", {width: map.spriteWidth, height: map.spriteHeight});
      canvas.getContext("2d").putImageData(sheet, -(row % columns) * map.spriteWidth, -Math.floor(row / columns) * map.spriteHeight);
      return {file: canvas.toDataURL("image/png").split(",")[1]};
    });
  }
}

/** The share of training rows below a value, in percent, between the quantiles that are known. */
export function percentile(value, levels, quantiles) {
  if (value <= quantiles[0]) return levels[0];
  for (let i = 1; i < quantiles.length; i++) {
    if (value < quantiles[i]) {
      const width = quantiles[i] - quantiles[i - 1];
      return levels[i - 1] + (levels[i] - levels[i - 1]) * (width ? (value - quantiles[i - 1]) / width : 1);
    }
  }
  return levels.at(-1);
}

/** A line of CSV as the numbers of a row. Throws Error naming the column. */
function readCsv(text, columns) {
  const cells = text.match(/("([^"]|"")*"|[^,]*)(,|$)/g).map((cell) => cell.replace(/,$/, "").trim()).map((cell) => cell.startsWith("\"") ? cell.slice(1, -1).replaceAll("\"\"", "\"") : cell);
  if (cells.length > columns.length && cells.at(-1) === "") cells.pop();
  if (cells.length !== columns.length) throw new Error(`${cells.length} values were typed; the row has ${columns.length} columns.`);
  return Float32Array.from(columns, (column, i) => {
    const levels = column.levels ?? [];
    if (levels.length) { const level = levels.indexOf(cells[i]); return level < 0 ? levels.length : level; }
    if (cells[i] === "" && column.fillValue !== undefined) return column.fillValue;
    const number = Number(cells[i]);
    if (cells[i] === "" || !Number.isFinite(number)) throw new Error(`${column.name}: "${cells[i]}" is not a number.`);
    return number;
  });
}
