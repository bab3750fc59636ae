"use strict";
// The files beside the page, each loaded once when it is needed: a page from a disk cannot fetch.
const run = JSON.parse(document.getElementById("run").textContent);
const KEPT = 96;
const arrived = new Map();
const waiting = new Map();

globalThis.neuronData = (name, value) => waiting.get(name)?.(value);

const load = (name) => {
  if (arrived.has(name)) {
    const value = arrived.get(name);
    arrived.delete(name);
    arrived.set(name, value);
    return value;
  }
  const value = new Promise((resolve, reject) => {
    const script = document.createElement("script");
    const done = (act, result) => { waiting.delete(name); script.remove(); act(result); };
    waiting.set(name, (result) => done(resolve, result));
    script.onerror = () => { arrived.delete(name); done(reject, new Error(`${name} is not beside this page`)); };
    script.src = name;
    document.head.append(script);
  });
  arrived.set(name, value);
  if (arrived.size > KEPT) arrived.delete(arrived.keys().next().value);
  return value;
};

const make = (tag, className, parent, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  parent?.append(element);
  return element;
};
