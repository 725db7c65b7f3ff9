// Draw rows x: pictures, texts, tables, vectors, audio; and small numbers as heat.

import {imageType} from "./model.js";

/** An element made of a tag, properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("aria-") || key === "role" || key === "for") element.setAttribute(key, value);
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element[key] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const source = (file) => `data:${imageType(file)};base64,${file}`;

/** The element of a row. label: what screen readers say */
export function show(row, model, label) {
  if (row.file !== undefined) return make("img", {className: `row ${small(model)}`, src: source(row.file), alt: label, draggable: false});
  if (row.text !== undefined) return make("output", {className: "row", textContent: row.text || "(empty)", "aria-label": `${label}: ${row.text}`});
  if (model.columns.length) return table(row.values, model);
  if (model.kind === "image") return pixels(row.values, model, label);
  return curve(row.values, model, label);
}

/** Replace what an element shows. A picture keeps its element, so that nothing flickers. */
export function update(holder, row, model, label) {
  const old = holder.firstElementChild;
  if (row.file !== undefined && old?.tagName === "IMG") {
    old.src = source(row.file);
    old.alt = label;
    return;
  }
  holder.replaceChildren(show(row, model, label));
}

function small(model) { return Math.max(...model.x.slice(0, 2)) <= 128 ? "small" : ""; }

function canvas(width, height, label, className) {
  return make("canvas", {width, height, className, role: "img", "aria-label": label});
}

function pixels(values, model, label) {
  const [height, width, channels = 1] = model.x;
  let [low, high] = model.range;
  if (!Number.isFinite(high - low) || high <= low) [low, high] = extent(values);
  const element = canvas(width, height, label, `row ${small(model)}`);
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = 255 * (values[i * channels + Math.min(c, channels - 1)] - low) / (high - low || 1);
    image.data[4 * i + 3] = 255;
  }
  element.getContext("2d").putImageData(image, 0, 0);
  return element;
}

function curve(values, model, label) {
  const element = canvas(480, 140, label, "row");
  const pen = element.getContext("2d");
  const channels = model.kind === "audio" ? model.x[1] ?? 1 : 1;
  const points = values.length / channels;
  const [low, high] = extent(values);
  pen.strokeStyle = color("--accent");
  pen.beginPath();
  for (let i = 0; i < points; i++) {
    const x = points > 1 ? i / (points - 1) * 480 : 240;
    const y = 136 - 132 * (values[i * channels] - low) / (high - low || 1);
    if (i) pen.lineTo(x, y); else pen.moveTo(x, y);
  }
  pen.stroke();
  return element;
}

function table(values, model) {
  const line = (column, value) => {
    const levels = column.levels ?? [];
    const text = levels.length ? levels[value] ?? "(other)" : column.isInteger ? Math.round(value) : Number(value.toPrecision(5));
    return make("tr", {}, make("th", {scope: "row", textContent: column.name}), make("td", {textContent: String(text)}));
  };
  return make("table", {className: "row"}, make("tbody", {}, ...model.columns.map((column, i) => line(column, values[i]))));
}

/** Numbers of a grid as a picture: `diverging` around zero, or from low to high. */
export function heat(values, width, height, label, diverging) {
  const element = canvas(width, height, label, "row small");
  const image = new ImageData(width, height);
  const [low, high] = extent(values);
  const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
  values.forEach((value, i) => {
    const share = diverging ? value / most : (value - low) / (high - low || 1);
    const rgb = diverging
      ? (share > 0 ? [255, 255 * (1 - share), 255 * (1 - share)] : [255 * (1 + share), 255 * (1 + share), 255])
      : [510 * share, 510 * share - 255, 0];
    image.data.set([...rgb, 255], 4 * i);
  });
  element.getContext("2d").putImageData(image, 0, 0);
  return element;
}

export function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
  return values.length ? [low, high] : [0, 1];
}

export function color(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

/** The pixels of a PNG as RGBA bytes. */
export async function decodePixels(file) {
  const image = new Image();
  image.src = source(file);
  await image.decode();
  const element = make("canvas", {width: image.naturalWidth, height: image.naturalHeight});
  const pen = element.getContext("2d", {willReadFrequently: true});
  pen.drawImage(image, 0, 0);
  return pen.getImageData(0, 0, element.width, element.height);
}

/** Save a canvas or an address as a file. */
export function save(address, name) { make("a", {href: address, download: name}).click(); }

/** A strip or a wall of rows; a click on one calls `pick` with its index. */
export function gallery(kind, rows, model, labels, pick) {
  const words = rows.some((row) => row.file === undefined && model.kind !== "image");
  return make("div", {className: `${kind} ${words ? "words" : ""}`, role: "group"}, ...rows.map((row, i) =>
    make("button", {type: "button", title: labels(i), "aria-label": labels(i), onclick: () => pick(i)}, show(row, model, labels(i)))));
}
