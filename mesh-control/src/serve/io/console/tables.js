// Workloads, certificates, and the configuration with its diagnostics and routes.

import { ago, fetched, h, share, short, table } from './dom.js';

const KINDS = ['cds', 'eds', 'lds', 'rds'];
const STATES = { synced: 'good', refused: 'bad', pending: 'fair', settling: 'fair' };
const ROWS = 500;

const status = () => fetched('/status?names=none');
const filter = (show) => h('input', { type: 'search', placeholder: 'filter', 'aria-label': 'Filter', oninput: show });

/** Those rows that have the words, and how many are left out. */
function chosen(input, rows, texts) {
  const wanted = input.value.trim().toLowerCase();
  const fitting = rows.filter((row) => texts(row).join(' ').toLowerCase().includes(wanted));
  return { rows: fitting.slice(0, ROWS), note: fitting.length > ROWS ? `The first ${ROWS} of ${fitting.length}: filter for others.` : `${fitting.length} of ${rows.length}` };
}

export function workloadsView(root) {
  let data = null;
  const input = filter(() => show());
  const [note, body] = [h('span', { role: 'status' }), h('div')];
  root.append(h('h2', {}, 'Workloads'), h('div', { class: 'bar' }, input, note), body);

  function show() {
    if (!data) return;
    const serves = new Map(data.workloads.map((workload) => [workload.node, workload]));
    const text = (client) => [client.node, client.namespace, client.class, client.identity || '', ...client.kinds.flatMap((kind) => [kind.state, kind.last_nack?.text || ''])];
    const found = chosen(input, data.clients, text);
    note.textContent = found.note;
    const rows = found.rows.map((client) => {
      const kinds = new Map(client.kinds.map((kind) => [kind.kind, kind]));
      const nack = client.kinds.filter((kind) => kind.last_nack).sort((a, b) => a.last_nack.seconds_ago - b.last_nack.seconds_ago)[0];
      const refused = nack && { text: `${nack.kind}, ${ago(nack.last_nack.seconds_ago)} ago: ${nack.last_nack.text}`, class: nack.state === 'refused' ? 'bad' : 'dim' };
      const served = serves.get(client.node);
      return {
        attributes: { 'data-workload': client.node },
        cells: [short(client.node), client.namespace, client.class,
          ...KINDS.map((kind) => ({ text: kinds.get(kind)?.state || '-', class: STATES[kinds.get(kind)?.state] || 'dim' })),
          client.identity || { text: 'none', class: 'fair' }, served ? served.serves.join(', ') || served.note || '' : '', refused || ''],
      };
    });
    const columns = ['Workload', 'Namespace', 'Client', ...KINDS.map((kind) => kind.toUpperCase()), 'Identity', 'Serves', 'Last refusal (NACK)'].map((name) => ({ name }));
    const away = data.turned_away.slice(0, ROWS).map((one) => ({ cells: [short(one.node), one.peer, one.reason, one.count, `${ago(one.seconds_ago)} ago`, one.text] }));
    const turned = away.length ? [h('h3', {}, 'Turned away'), table(['Node', 'From', 'Reason', 'Times', 'Last', 'Why'].map((name) => ({ name })), away)] : [];
    body.replaceChildren(rows.length ? table(columns, rows) : h('p', { class: 'dim' }, 'Nobody is connected.'), ...turned);
  }
  return { every: 4000, async refresh() { data = await status(); show(); } };
}

export function certificatesView(root) {
  let data = null;
  const input = filter(() => show());
  const [note, body] = [h('span', { role: 'status' }), h('div')];
  root.append(h('h2', {}, 'Certificates'), h('div', { class: 'bar' }, input, note), body);

  function show() {
    if (!data) return;
    const now = Date.now() / 1000;
    const until = (expires) => ({ text: `${new Date(expires * 1000).toISOString().slice(0, 19)}Z, ${expires > now ? `in ${ago(expires - now)}` : 'over'}`, class: expires - now < 600 ? 'bad' : expires - now < 7200 ? 'fair' : 'good' });
    const issued = data.certificates.map((one) => ({ ...one, of: 'issued here' }));
    // Those that others have issued, and workloads are connected with.
    const own = new Set(issued.map((one) => one.identity));
    const others = data.clients.filter((client) => client.certificate_expires && !own.has(client.identity))
      .map((client) => ({ identity: client.identity, serial: client.certificate_serial || '', expires: client.certificate_expires, of: short(client.node) }));
    const shown = [...issued, ...others].sort((a, b) => a.expires - b.expires);
    const found = chosen(input, shown, (one) => [one.identity, one.serial, one.of]);
    note.textContent = found.note;
    const rows = found.rows.map((one) => ({ attributes: { 'data-certificate': one.identity }, cells: [one.identity, until(one.expires), one.serial, one.of, one.count || ''] }));
    const authority = data.authority ? [h('h3', {}, 'Authority'), facts(data.authority)] : [h('p', { class: 'dim' }, 'This server signs no certificates.')];
    body.replaceChildren(...authority, h('h3', {}, 'Of workloads: the last one of each identity, the next to end first'),
      rows.length ? table([{ name: 'Identity' }, { name: 'Ends' }, { name: 'Serial number' }, { name: 'From' }, { name: 'Issued', number: true }], rows) : h('p', { class: 'dim' }, 'None.'));
  }

  function facts(object) {
    const said = (name, value) => (/expire|ends|_at$|not_after/.test(name) && typeof value === 'number' && value > 1e9 ? until_text(value) : typeof value === 'object' ? JSON.stringify(value) : String(value));
    const until_text = (time) => `${new Date(time * 1000).toISOString().slice(0, 19)}Z`;
    const rows = Object.entries(object).filter(([, value]) => value !== null && !(Array.isArray(value) && value.length === 0));
    return table([{ name: '' }, { name: '' }], rows.map(([name, value]) => ({ cells: [{ text: name.replaceAll('_', ' '), class: 'dim' }, said(name, value)] })));
  }
  return { every: 4000, async refresh() { data = await status(); show(); } };
}

export function configurationView(root, about) {
  let [data, objects] = [null, null];
  const input = filter(() => show());
  const [note, body] = [h('span', { role: 'status' }), h('div')];
  const services = h('select', { 'aria-label': 'Service', onchange: () => routes() });
  const from = h('input', { value: 'default/client', 'aria-label': 'As seen by', onchange: () => routes() });
  const table_of_routes = h('div', { 'aria-live': 'polite' });
  root.append(h('h2', {}, 'Configuration'),
    h('h3', {}, 'Effective routes'), h('div', { class: 'bar' }, h('label', {}, 'of ', services), h('label', {}, ' as seen by ', from)), table_of_routes,
    h('h3', {}, 'Objects'), h('div', { class: 'bar' }, input, note), body);

  function options() {
    const before = services.value;
    const all = objects.services.flatMap((service) => service.ports.map((port) => `${service.host}:${port}`));
    if (all.join() === [...services.options].map((option) => option.value).join()) return;
    services.replaceChildren(...all.map((target) => h('option', { value: target }, target)));
    const wanted = all.find((target) => target === before) || all.find((target) => about && target.startsWith(`${about}:`));
    if (wanted) services.value = wanted;
    routes();
  }

  async function routes() {
    if (!services.value) { table_of_routes.replaceChildren(h('p', { class: 'dim' }, 'No service is known.')); return; }
    try {
      const query = new URLSearchParams({ from: from.value, target: services.value });
      const told = await fetched(`/api/routes?${query}`);
      const leads = (route) => route.clusters.map((one) => `${route.clusters.length > 1 ? `${share(one.percent / 100)} ` : ''}${one.host ? one.host + (one.subset ? ` subset ${one.subset}` : '') : one.name}${one.problem ? ` (${one.problem})` : ''}`).join('; ');
      const rows = told.routes.map((route) => ({ cells: [route.conditions.join(', ') || 'any request', route.clusters.length ? leads(route) : route.action, route.name, route.origin || ''] }));
      table_of_routes.replaceChildren(told.error ? h('p', { class: 'bad' }, told.error) : table(['Requests with', 'Go to', 'Route', 'Written'].map((name) => ({ name })), rows));
    } catch (error) { table_of_routes.replaceChildren(h('p', { class: 'bad' }, error.message)); }
  }

  function show() {
    if (!data || !objects) return;
    options();
    const findings = new Map();
    for (const one of data.diagnostics) findings.set(one.object || '', [...(findings.get(one.object || '') || []), one]);
    const wrong = new Map(data.wrong.map((one) => [one.object || one.file, one]));
    const known = new Set(objects.objects.map((one) => one.object));
    // What is about no object that is known has a row of its own.
    const others = [...new Set([...findings.keys(), ...wrong.keys()])].filter((object) => !known.has(object)).map((object) => ({ object, written: wrong.get(object)?.file || '', standing: wrong.get(object)?.standing || '' }));
    const worst = (object) => ({ error: 3, warning: 2, info: 1 }[(findings.get(object) || []).map((one) => one.severity).sort((a, b) => ['error', 'warning', 'info'].indexOf(a) - ['error', 'warning', 'info'].indexOf(b))[0]] || 0) + (wrong.has(object) ? 4 : 0);
    const all = [...objects.objects, ...others].sort((a, b) => worst(b.object) - worst(a.object) || (a.object < b.object ? -1 : 1));
    const found = chosen(input, all, (one) => [one.object, one.written, ...(findings.get(one.object) || []).map((finding) => finding.message)]);
    note.textContent = found.note;
    const said = (one) => {
      const lines = (findings.get(one.object) || []).map((finding) => h('li', { class: finding.severity === 'error' ? 'bad' : finding.severity === 'warning' ? 'fair' : 'dim' },
        `${finding.severity} ${finding.code}${finding.file ? ` ${finding.file}${finding.line ? `:${finding.line}` : ''}` : ''}${finding.field ? ` ${finding.field}` : ''}: ${finding.message}`));
      return lines.length ? h('ul', { class: 'plain' }, lines) : '';
    };
    const rows = found.rows.map((one) => ({ attributes: { 'data-object': one.object }, cells: [one.object || '(none)', one.written, { text: one.standing || '', class: one.standing === 'in-force' ? 'good' : 'bad' }, said(one)] }));
    body.replaceChildren(rows.length ? table(['Object', 'Written', 'Standing', 'Findings'].map((name) => ({ name })), rows) : h('p', { class: 'dim' }, 'No object.'));
  }
  return { every: 4000, async refresh() { [data, objects] = await Promise.all([status(), fetched('/api/objects')]); show(); } };
}
