// The page: its state, which the address holds; the header; the panel of the current point.

import {Model} from "./model.js";
import {nameOf, resolve} from "./points.js";
import {call, Latest, onCall, RpcError} from "./rpc.js";
import {asGrpcurl, asPython, savePicture} from "./copy.js";
import {make, show, update} from "./show.js";
import {map} from "./view-map.js";
import {own} from "./view-own.js";
import {paths} from "./view-paths.js";
import {samples} from "./view-samples.js";
import {spatial} from "./view-spatial.js";
import {units} from "./view-units.js";

const VIEWS = {map, units, paths, own, samples, spatial};
const DEFAULTS = {view: "map", here: "7:0", a: "", b: "", seed: "7", count: "48", temperature: "1", steps: "9", path: "SLERP", axes: "", color: "label", region: "", version: ""};
const ALLOWED = {
  seed: /^\d{1,20}$/, count: /^[1-9]\d{0,5}$/, temperature: /^\d{1,2}(\.\d+)?$/, steps: /^\d{1,4}$/, path: /^(SLERP|LERP)$/,
  axes: /^(components|units)?$/, color: /^(label|error|kl)$/, region: /^(\d{1,5}(,\d{1,5}){3})?$/, version: /^\d{0,9}$/,
};  // a view and points have checks of their own
const PASSING = {
  gone: "The server is gone. Trying again.", unavailable: "The server is loading or stopping. Trying again.",
  resource_exhausted: "The server is busy. Trying again.", deadline_exceeded: "The server is busy: it did not answer in 20 seconds. Trying again.",
};  // what is said of errors that pass, by their codes
const $ = (id) => document.getElementById(id);

class App {
  model = null;
  z = null;  // the current point's latent
  state = {...DEFAULTS};
  #view = null;
  #latest = new Latest();
  #writing = 0;

  async start() {
    onCall((outcome) => this.#showOutcome(outcome));
    addEventListener("hashchange", () => this.#open());
    $("tabs").addEventListener("keydown", (event) => this.#onTabKey(event));
    addEventListener("keydown", (event) => this.#onKey(event));
    $("model").addEventListener("change", () => { location.href = `${encodeURIComponent($("model").value)}`; });
    await this.#open();
  }

  #opening = new Latest();

  /** Read the address and show what it says: the newest only, if somebody goes back and forth. */
  #open() { return this.#opening.run(() => this.#read()); }

  async #read() {
    clearTimeout(this.#writing);
    const said = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    const wrong = Object.keys(ALLOWED).filter((key) => key in said && !ALLOWED[key].test(said[key]));
    this.state = {...DEFAULTS, ...said, ...Object.fromEntries(wrong.map((key) => [key, DEFAULTS[key]]))};
    try {
      if (this.#loaded !== this.state.version) await this.#loadModel();
      this.z = await resolve(this.state.here, this.model);
      this.#mount();
      this.notice(wrong.map((key) => `The address says ${key}=${said[key]}; the page cannot use it.`).join(" "));
    } catch (error) { this.#fail(error); }
  }

  #loaded = null;  // the version that the address named when the model was read

  async #loadModel() {
    const wanted = decodeURIComponent(location.pathname.split("/").at(-1));
    this.model = await Model.load(wanted, Number(this.state.version) || 0);
    document.title = `${this.model.name} - latentd explorer`;
    $("version").textContent = `version ${this.model.version}${this.state.version ? ", as the address says" : ""}`;
    $("version").title = this.model.digest;
    const {models = []} = await call("ListModels", {});
    const names = [...new Set([this.model.name, ...models.filter((one) => one.state === "MODEL_STATE_READY").map((one) => one.version.model)])].sort();
    $("model").replaceChildren(...names.map((name) => make("option", {value: name, textContent: name, selected: name === this.model.name})));
    this.#loaded = this.state.version;
  }

  #mount() {
    this.#view?.unmount?.();
    const controls = () => [...$("tabs").children, ...$("view").querySelectorAll(".bar :is(button, input, select)")];
    const focused = controls().indexOf(document.activeElement);
    const available = Object.entries(VIEWS).filter(([, view]) => view.suits(this.model));
    if (!available.some(([key]) => key === this.state.view)) this.state.view = "map";
    $("tabs").replaceChildren(...available.map(([key, view], i) => make("button", {
      type: "button", role: "tab", id: `tab-${key}`, "aria-selected": String(key === this.state.view), "aria-controls": "view",
      textContent: view.title, title: `Key ${i + 1}`, onclick: () => this.go({view: key}),
    })));
    $("view").setAttribute("aria-labelledby", `tab-${this.state.view}`);
    $("here").replaceChildren(this.#panel());
    $("view").replaceChildren();
    this.#view = VIEWS[this.state.view].mount($("view"), this);
    controls()[focused]?.focus();  // its successor: who uses the keyboard stays where they were
    return this.refresh();
  }

  /** The panel of the current point. */
  #panel() {
    const button = (text, onclick, title = "") => make("button", {type: "button", textContent: text, title, onclick});
    const pin = (end) => button(`Pin ${end.toUpperCase()}`, () => { this.set({[end]: nameOf(this.z)}); this.pins(); this.#view?.onPin?.(); }, `Key ${end}`);
    return make("div", {},
      make("h2", {textContent: "Current point"}),
      make("div", {id: "picture"}),
      make("p", {className: "hint", id: "numbers"}),
      make("div", {className: "buttons"}, pin("a"), pin("b"),
        button("Copy as Python", () => this.copy(asPython(this))),
        button("Copy as grpcurl", () => this.copy(asGrpcurl(this))),
        this.model.kind === "image" ? button("Save PNG", () => savePicture($("picture"), this)) : null,
        button("Copy link", () => this.copy(location.href))),
      make("p", {className: "hint", id: "pins"}),
      make("p", {className: "hint", id: "copied", role: "status"}));
  }

  pins() {
    const ends = ["a", "b"].filter((end) => this.state[end]);
    $("pins").replaceChildren(...ends.flatMap((end) => [make("span", {className: `pin-${end}`, textContent: `${end.toUpperCase()} is pinned. `})]));
  }

  /** Move to a latent. name: what the address calls it; without one, its numbers. */
  move(z, name = "") {
    this.z = Float32Array.from(z);
    this.set({here: name || nameOf(z)});
    this.#view?.onMove?.();
    return this.refresh();
  }

  /** Decode the current point: the newest only, if the pointer is faster than the server. */
  refresh() {
    return this.#latest.run(async () => {
      const z = this.z;
      const [row] = await this.model.decode([z]);
      this.shown = z;
      update($("picture"), row, this.model, "what the model decodes at the current point");
      const norm = Math.hypot(...z);
      $("numbers").textContent = `|z| = ${norm.toFixed(2)}; of N(0, I) about ${Math.sqrt(z.length).toFixed(2)}`;
      this.pins();
      document.documentElement.dataset.shown = nameOf(z).slice(0, 80);  // tests wait for it
    });
  }

  /** Change the state and the address; the view stays. */
  set(changes) {
    Object.assign(this.state, changes);
    clearTimeout(this.#writing);
    this.#writing = setTimeout(() => history.replaceState(null, "", this.#hash()), 150);  // browsers limit how often
  }

  /** Change the state and the address, and show the view that they say. */
  go(changes) {
    clearTimeout(this.#writing);
    Object.assign(this.state, changes);
    history.pushState(null, "", this.#hash());
    this.notice("");
    return this.#mount();
  }

  #hash() {
    const said = Object.entries(this.state).filter(([key, value]) => String(value) !== DEFAULTS[key]);
    return `#${new URLSearchParams(said.map(([key, value]) => [key, String(value)]))}`;
  }

  async copy(text) {
    try { await navigator.clipboard.writeText(text); $("copied").textContent = "Copied."; }
    catch { $("copied").replaceChildren(make("textarea", {value: text, readOnly: true, rows: 8, "aria-label": "Copy this text"})); }
  }

  notice(text) { $("notice").hidden = !text; $("notice").textContent = text; }

  #fail(error) {
    if (!(error instanceof RpcError)) { this.notice(error.message); return; }
    if (PASSING[error.code]) setTimeout(() => this.#open(), 1000 * Math.max(error.retryAfter, 1));
    else this.notice(error.message);
  }

  #showOutcome({ok, method, seconds, servedBy, error}) {
    if (ok) {
      if (method === this.#refused) { this.#refused = ""; this.#withdraw(); }
      $("status").textContent = `ready, ${Math.round(seconds * 1000)} ms`;
      if (this.#trouble) { this.#trouble = false; this.#withdraw(); if (this.z) this.refresh(); }
      if (servedBy && this.model && servedBy.model === this.model.name && servedBy.digest !== this.model.digest && !this.state.version) this.#onSwap(servedBy);
      return;
    }
    const again = PASSING[error.code];
    this.#trouble = Boolean(again);
    this.#refused = again ? "" : method;
    $("status").textContent = again ?? "refused";
    this.#complaint = again ?? error.message;
    this.notice(this.#complaint);
    if (["gone", "unavailable"].includes(error.code)) this.#poll();
    else if (error.code === "not_found" && this.model && !this.state.version) this.#onSwap(null);
    else if (again && this.z) setTimeout(() => this.refresh(), 1000 * Math.max(error.retryAfter, 0.5));
  }

  /** Take back what was said of a failed call, and nothing else that has been said since. */
  #withdraw() { if ($("notice").textContent === this.#complaint) this.notice(""); }

  #complaint = "";  // what the notice said of the last call that failed
  #refused = "";  // the method whose refusal that was
  #trouble = false;  // the last call failed in a way that passes
  #polling = 0;

  /** Ask once a second whether the server is back. */
  #poll() {
    clearTimeout(this.#polling);
    this.#polling = setTimeout(() => call("ListModels", {}).catch(() => {}), 1000);
  }

  #swapping = false;

  /** Another version answers: read the model again. */
  async #onSwap() {
    if (this.#swapping) return;
    this.#swapping = true;
    try {
      const before = this.model.version;
      await this.#loadModel();
      if (this.z.length !== this.model.size) this.z = await resolve("7:0", this.model);
      this.#mount();
      this.notice(`The server now serves version ${this.model.version}; it was ${before}.`);
    } catch (error) { this.#fail(error); } finally { this.#swapping = false; }
  }

  #onTabKey(event) {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!step) return;
    const tabs = [...$("tabs").children];
    const next = (tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length;
    tabs[next].click();
    $("tabs").children[next].focus();
  }

  #onKey(event) {
    if (!this.z || event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT|TEXTAREA|DIALOG/.test(event.target.tagName)) return;
    const tab = $("tabs").children[Number(event.key) - 1];
    if (tab) tab.click();
    if (event.key === "a" || event.key === "b") { this.set({[event.key]: nameOf(this.z)}); this.pins(); this.#view?.onPin?.(); }
  }
}

export const app = new App();
app.start();
