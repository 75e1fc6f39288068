// The service graph: what goes between services now, with a list of the same below it.

import { NODE, layout } from './layout.js';
import { badness, fetched, h, millis, rate, s, share, table } from './dom.js';

const ROWS = 100;
const DENSE = 150;

export function graphView(root) {
  const words = h('input', { type: 'search', placeholder: 'service, namespace', 'aria-label': 'Filter', oninput: () => show() });
  const idle = h('input', { type: 'checkbox', onchange: () => show() });
  const count = h('span', { role: 'status' });
  const svg = s('svg', { role: 'group', 'aria-label': 'Service graph', tabindex: 0 });
  const aside = h('aside', { 'aria-label': 'Details', 'aria-live': 'polite' });
  const list = h('div');
  const button = (name, label, act) => h('button', { type: 'button', 'aria-label': label, onclick: act }, name);
  root.append(
    h('div', { class: 'bar' }, words, h('label', {}, idle, ' services without traffic'),
      button('+', 'Zoom in', () => zoom(1 / 1.3)), button('-', 'Zoom out', () => zoom(1.3)), button('Fit', 'Fit', () => fit()), count),
    h('div', { class: 'stage' }, svg, aside),
    h('h3', {}, 'Edges'), list,
  );

  let data = { nodes: [], edges: [] };
  let drawn = { key: null, nodes: new Map(), edges: new Map(), size: { width: 1, height: 1 } };
  let box = null;
  let listed = 0;
  let chosen = null;

  function shown() {
    const wanted = words.value.trim().toLowerCase();
    const fits = (node) => `${node.id} ${node.namespace}`.toLowerCase().includes(wanted);
    const matching = new Set(data.nodes.filter(fits).map((node) => node.id));
    const edges = data.edges.filter((edge) => matching.has(edge.source) || matching.has(edge.destination));
    const used = new Set(edges.flatMap((edge) => [edge.source, edge.destination]));
    for (const node of data.nodes) {
      if ((idle.checked || (wanted && data.edges.length === 0)) && matching.has(node.id)) used.add(node.id);
    }
    return { nodes: data.nodes.filter((node) => used.has(node.id)), edges };
  }

  function show() {
    const { nodes, edges } = shown();
    const before = drawn.key;
    const key = JSON.stringify([nodes.map((node) => node.id), edges.map((edge) => [edge.source, edge.destination]).sort()]);
    if (key !== drawn.key) draw(key, nodes, edges);
    const splits = shares(edges);
    for (const edge of edges) update(drawn.edges.get(name(edge)), edge, splits.get(edge));
    const quiet = data.nodes.filter((node) => node.kind === 'service').length;
    if (chosen) detail(chosen, false);
    const counted = `${nodes.length} nodes, ${edges.length} edges; ${quiet} services are known`;
    if (count.textContent !== counted) count.textContent = counted;
    if (edges.length > DENSE && Date.now() < listed + 8000 && key === before) return;
    listed = Date.now();
    list.replaceChildren(edges.length ? rows(edges, splits) : h('p', { class: 'dim' },
      'No requests were reported yet. Clients of the library, of gRPC and Envoys report every few seconds while they call.'));
  }

  function draw(key, nodes, edges) {
    const ids = nodes.map((node) => node.id);
    const known = new Set(ids);
    // A service that is called as a whole goes on in its versions.
    const members = nodes.filter((node) => node.kind === 'version' && known.has(node.service)).map((node) => [node.service, node.id]);
    const { positions, width, height } = layout(ids, [...edges.map((edge) => [edge.source, edge.destination]), ...members]);
    drawn = { key, nodes: new Map(), edges: new Map(), size: { width, height } };
    const ways = s('g', {});
    for (const [from, to] of members) ways.append(s('path', { class: 'member', d: way(positions.get(from), positions.get(to)) }));
    for (const edge of edges) {
      const [a, b] = [positions.get(edge.source), positions.get(edge.destination)];
      const middle = { x: (a.x + NODE.width + b.x) / 2, y: (a.y + b.y + NODE.height) / 2 };
      const parts = {
        way: s('path', { class: 'way', d: way(a, b), 'marker-end': 'url(#tip)' }),
        lock: s('path', { class: 'lock' }),
        text: s('text', { x: middle.x, y: middle.y - 6, 'text-anchor': 'middle' }),
        title: s('title', {}),
        middle,
      };
      const tell = () => { parts.title.textContent = `${edge.source} to ${edge.destination}: ${said(parts.edge)}`; };
      parts.group = s('g', { class: 'edge', 'data-edge': name(edge), onpointerenter: tell }, parts.title, parts.way, parts.lock, parts.text);
      drawn.edges.set(name(edge), parts);
      ways.append(parts.group);
    }
    const boxes = nodes.map((node) => box_of(node, positions.get(node.id)));
    const tip = s('marker', { id: 'tip', viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, markerUnits: 'userSpaceOnUse', orient: 'auto' },
      s('path', { d: 'M0 0 8 4 0 8Z', fill: 'context-stroke' }));
    svg.setAttribute('class', edges.length > DENSE ? 'dense' : '');
    svg.replaceChildren(s('defs', {}, tip), ways, ...boxes);
    fit();
  }

  function box_of(node, at) {
    const pick = () => detail(node.id, true);
    const keyed = (event) => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); pick(); } };
    const title = node.version ? `${node.name} ${node.version}` : node.name;
    const group = s('g', { class: `node ${node.kind}`, 'data-node': node.id, transform: `translate(${at.x} ${at.y})`, tabindex: 0, role: 'button', 'aria-label': `${node.kind} ${title} in ${node.namespace}`, onclick: pick, onkeydown: keyed },
      s('title', {}, node.id),
      s('rect', { width: NODE.width, height: NODE.height, rx: node.kind === 'workload' ? 18 : 6 }),
      s('text', { x: 12, y: 17 }, cut(title, 25)),
      s('text', { x: 12, y: 32, class: 'dim' }, cut(`${node.kind === 'workload' ? 'workload in ' : ''}${node.namespace}`, 28)));
    drawn.nodes.set(node.id, group);
    return group;
  }

  function update(parts, edge, part) {
    parts.edge = edge;
    const idle_now = edge.requests_per_second === 0;
    const look = `edge ${idle_now ? 'idle' : badness(edge.error_rate)}`;
    // In quarters: whatever changes is painted anew with all that lies over it, and rates never stand still.
    const width = Math.round(4 * (1.2 + Math.min(4, Math.log10(1 + edge.requests_per_second)))) / 4;
    if (parts.look !== look) parts.group.setAttribute('class', look);
    if (parts.width !== width) parts.way.setAttribute('stroke-width', width);
    Object.assign(parts, { look, width });
    if (drawn.edges.size > DENSE) return;
    const what = `${edge.requests_per_second} ${edge.error_rate} ${edge.mutual_tls} ${part}`;
    if (parts.what === what) return;
    parts.what = what;
    const errors = edge.error_rate > 0 ? `, ${share(edge.error_rate)} fail` : '';
    parts.text.textContent = `${rate(edge.requests_per_second)}/s${part === null ? '' : ` (${share(part)})`}${errors}`;
    const { x, y } = parts.middle;
    const left = x - 9 - parts.text.textContent.length * 3.2;
    const tls = edge.mutual_tls;
    parts.lock.setAttribute('class', `lock ${tls === null ? 'unknown' : tls >= 1 ? 'closed' : 'open'}`);
    const shackle = tls >= 1 ? `M${left - 2} ${y - 11}v-2a3 3 0 0 1 6 0v2` : `M${left - 2} ${y - 11}v-2a3 3 0 0 1 6 0`;
    parts.lock.setAttribute('d', `${shackle}M${left - 4} ${y - 11}h10v7h-10z`);
  }

  function detail(id, moved) {
    const node = data.nodes.find((one) => one.id === id);
    drawn.nodes.forEach((group, of) => group.classList.toggle('chosen', of === id));
    if (!node) return;
    if (!moved && chosen === id && aside.contains(document.activeElement)) return;
    chosen = id;
    const ends = (title, which, other) => {
      const edges = data.edges.filter((edge) => edge[which] === id);
      return edges.length ? [h('h3', {}, title), h('ul', { class: 'plain' }, edges.map((edge) => h('li', {}, `${edge[other]}: ${said(edge)}`)))] : [];
    };
    const host = node.service || (node.kind === 'service' ? node.id : null);
    aside.replaceChildren(
      h('h2', {}, node.id),
      h('button', { type: 'button', onclick: () => { chosen = null; aside.replaceChildren(); drawn.nodes.forEach((group) => group.classList.remove('chosen')); } }, 'Close'),
      ...(host ? [' ', h('a', { href: `#configuration/${encodeURIComponent(host)}` }, 'Routes and objects')] : []),
      ...ends('Called by', 'destination', 'source'), ...ends('Calls', 'source', 'destination'));
  }

  function fit() {
    const { width, height } = drawn.size;
    box = { x: -20, y: -24, width: width + 40, height: height + 44 };
    apply();
  }
  function zoom(by, at) {
    if (!box) return;
    const centre = at || { x: box.x + box.width / 2, y: box.y + box.height / 2 };
    box = { x: centre.x - (centre.x - box.x) * by, y: centre.y - (centre.y - box.y) * by, width: box.width * by, height: box.height * by };
    apply();
  }
  const apply = () => svg.setAttribute('viewBox', `${box.x} ${box.y} ${box.width} ${box.height}`);
  const scale = () => Math.max(box.width / svg.clientWidth, box.height / svg.clientHeight);
  svg.addEventListener('wheel', (event) => {
    event.preventDefault();
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    zoom(event.deltaY > 0 ? 1.15 : 1 / 1.15, point);
  }, { passive: false });
  let grip = null;
  svg.addEventListener('pointerdown', (event) => { if (!event.target.closest('.node')) grip = { x: event.clientX, y: event.clientY }; });
  svg.addEventListener('pointermove', (event) => {
    if (!grip) return;
    box.x -= (event.clientX - grip.x) * scale();
    box.y -= (event.clientY - grip.y) * scale();
    grip = { x: event.clientX, y: event.clientY };
    apply();
  });
  window.addEventListener('pointerup', () => { grip = null; });
  svg.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) { event.preventDefault(); box.x += step[0] * 60 * scale(); box.y += step[1] * 60 * scale(); apply(); }
    if (event.key === '+') zoom(1 / 1.3);
    if (event.key === '-') zoom(1.3);
  });

  return {
    every: 2000,
    async refresh() {
      data = await fetched('/api/graph');
      show();
    },
  };
}

const name = (edge) => `${edge.source} ${edge.destination}`;
const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** Of edges that split one service, the part of each; `null` of others. */
function shares(edges) {
  const groups = new Map();
  for (const edge of edges) {
    const group = `${edge.source} ${edge.service}`;
    groups.set(group, [...(groups.get(group) || []), edge]);
  }
  const parts = new Map();
  for (const group of groups.values()) {
    const all = group.reduce((sum, edge) => sum + edge.requests_per_second, 0);
    for (const edge of group) parts.set(edge, group.length > 1 && all > 0 ? edge.requests_per_second / all : null);
  }
  return parts;
}

function way(a, b) {
  const [x1, y1, x2, y2] = [a.x + NODE.width, a.y + NODE.height / 2, b.x, b.y + NODE.height / 2];
  if (x2 > x1) return `M${x1} ${y1}C${(x1 + x2) / 2} ${y1} ${(x1 + x2) / 2} ${y2} ${x2} ${y2}`;
  // It leads back: above both.
  const top = Math.min(a.y, b.y) - 30;
  return `M${x1} ${y1}C${x1 + 60} ${top} ${x2 - 60} ${top} ${x2} ${y2}`;
}

function said(edge) {
  const tls = edge.mutual_tls === null ? 'TLS not said' : edge.mutual_tls >= 1 ? 'mutual TLS' : edge.mutual_tls > 0 ? `${share(edge.mutual_tls)} by TLS` : 'plaintext';
  return `${rate(edge.requests_per_second)}/s, ${share(edge.error_rate)} fail, p50 ${millis(edge.p50_ms)} ms, p99 ${millis(edge.p99_ms)} ms, ${tls}`;
}

function rows(edges, splits) {
  const columns = [{ name: 'From' }, { name: 'To' }, { name: 'Requests/s', number: true }, { name: 'Share', number: true }, { name: 'Fail', number: true },
    { name: 'p50 ms', number: true }, { name: 'p99 ms', number: true }, { name: 'TLS' }, { name: 'Client' }];
  const cells = edges.slice(0, ROWS).map((edge) => ({ cells: [
    edge.source, edge.destination, rate(edge.requests_per_second), splits.get(edge) === null ? '' : share(splits.get(edge)),
    { text: share(edge.error_rate), class: badness(edge.error_rate) }, millis(edge.p50_ms), millis(edge.p99_ms),
    edge.mutual_tls === null ? '-' : edge.mutual_tls >= 1 ? 'mutual' : edge.mutual_tls > 0 ? share(edge.mutual_tls) : { text: 'none', class: 'fair' }, edge.class,
  ] }));
  const more = edges.length > ROWS ? [h('p', { class: 'dim' }, `The busiest ${ROWS} of ${edges.length}.`)] : [];
  return h('div', {}, table(columns, cells), ...more);
}
