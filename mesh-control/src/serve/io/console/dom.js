// Elements, and what is fetched. Text from outside becomes text and attributes only, never markup.

const SVG = 'http://www.w3.org/2000/svg';

function made(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const h = (tag, attributes, ...children) => made(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => made(document.createElementNS(SVG, tag), attributes, children);

/** A table; cells are texts, elements, or `{ text, class }`. */
export function table(columns, rows) {
  const cell = (tag, content, column) => {
    const is = content && typeof content === 'object' && !(content instanceof Node) ? content : { text: content };
    const classes = [is.class, column.number && 'number'].filter(Boolean).join(' ');
    return h(tag, { class: classes || null, scope: tag === 'th' ? 'col' : null }, is.text ?? '');
  };
  const head = h('tr', {}, columns.map((column) => cell('th', column.name, column)));
  const body = rows.map((row) => h('tr', row.attributes || {}, columns.map((column, at) => cell('td', row.cells[at], column))));
  return h('div', { class: 'scroll' }, h('table', {}, h('thead', {}, head), h('tbody', {}, body)));
}

export async function fetched(path) {
  const answer = await fetch(path, { headers: { accept: 'application/json' } });
  if (!answer.ok) throw new Error(`${answer.status}: ${(await answer.text()).trim()}`);
  return answer.json();
}

export const rate = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));
export const share = (value) => `${(value * 100).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`;
export const millis = (value) => (value === null || value === undefined ? '-' : value >= 100 ? value.toFixed(0) : value.toFixed(1));
export const badness = (errors) => (errors >= 0.05 ? 'bad' : errors > 0 ? 'fair' : 'good');

export function ago(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

/** `name.namespace` of an Istio node id; any other id as it is. */
export const short = (node) => node.split('~')[2] || node || '(no id)';
