// Elements of the page, and numbers in words. All texts go into the page as text, never as HTML.

const COLORS = 7;
export const $ = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  const svg = ["svg", "rect", "path"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

export function share(part) {
  if (part > 0 && part < 0.0005) return "< 0.1 %";
  if (part < 1 && part >= 0.9995) return "> 99.9 %";
  const text = (100 * part).toFixed(part > 0.0995 && part < 0.9895 ? 0 : 1);
  return `${text.replace(/\.0$/, "")} %`;
}

export function widthOf(box, part) {
  box.style.width = `${100 * Math.min(Math.max(part, 0), 1)}%`;
  return box;
}

export const colored = (number) => (number < COLORS ? `var(--series-${number + 1})` : "var(--rest)");
export const whenLeft = (layer) => (layer ? `after layer ${layer}` : "before layer 1");

export function milliseconds(value) {
  return value == null ? ["–"] : [value < 10 ? value.toFixed(1) : value.toFixed(0), "ms"];
}
