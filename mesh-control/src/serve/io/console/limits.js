// What limits requests, and how much of it is used: quotas by identity, rules of the rate limit service, and the objects.

import { ago, fetched, h, table } from './dom.js';

const ROWS = 500;
const named = (names, numbers) => [...names.map((name) => ({ name })), ...numbers.map((name) => ({ name, number: true }))];
const identity = (by) => Object.entries(by).map(([key, value]) => `${key}=${value}`).join(', ');
const used = (of) => ({ text: of.used, class: of.used >= of.limit ? 'bad' : of.used >= of.limit * 0.8 ? 'fair' : 'good' });

export function limitsView(root) {
  const body = h('div');
  root.append(h('h2', {}, 'Limits'), body);

  function quotas(told) {
    if (!told) return [h('p', { class: 'dim' }, 'This server keeps no quotas.')];
    const now = Date.now() / 1000;
    // Those that have least left come first.
    const share = (one) => one.used / Math.max(one.limit, 1);
    const rows = [...told.identities].sort((a, b) => share(b) - share(a)).slice(0, ROWS).map((one) => ({
      attributes: { 'data-quota': `${one.quota} ${one.rule} ${identity(one.by)}` },
      cells: [one.quota, one.rule, identity(one.by), used(one), one.leased, one.left, `${one.limit} ${one.unit === 'hour' ? 'an' : 'a'} ${one.unit}`, one.denied, ago(Math.max(one.resets - now, 0))],
    }));
    const away = told.reached ? [] : [h('p', { class: 'bad' }, `Quotas are kept in ${told.store}, which is away: no shares are assigned.`)];
    const more = told.identities.length > ROWS ? [h('p', { class: 'dim' }, `Those ${ROWS} of ${told.identities.length} that have least left.`)] : [];
    const columns = named(['Quota', 'Rule', 'Identity'], ['Used', 'Leased', 'Left', 'Of', 'Denied', 'Resets in']);
    return [...away, ...more, rows.length ? table(columns, rows) : h('p', { class: 'dim' }, 'No quota is in use.')];
  }

  function service(told) {
    if (!told) return [h('p', { class: 'dim' }, 'This server is no rate limit service.')];
    const rows = told.rules.slice(0, ROWS).map((one) => ({
      attributes: { 'data-limit': `${one.domain} ${one.rule}` },
      cells: [one.domain, one.rule, one.hits, { text: one.over, class: one.over ? 'fair' : 'good' }, one.near, one.shadow],
    }));
    const away = told.reached ? [] : [h('p', { class: 'bad' }, `Counters are kept in ${told.store}, which is away: questions are not answered.`)];
    return [...away, rows.length ? table(named(['Domain', 'Rule'], ['Hits', 'Over', 'Near', 'Shadow']), rows) : h('p', { class: 'dim' }, 'No rule was asked about.')];
  }

  return {
    every: 4000,
    async refresh() {
      const told = await fetched('/api/limits');
      const objects = told.objects.map((one) => ({ attributes: { 'data-object': one.object }, cells: [one.object, one.written, { text: one.standing, class: one.standing === 'in-force' ? 'good' : 'bad' }] }));
      body.replaceChildren(h('h3', {}, 'Quotas'), ...quotas(told.quotas), h('h3', {}, 'Counted by this server'), ...service(told.service), h('h3', {}, 'Objects'),
        objects.length ? table(named(['Object', 'Written', 'Standing'], []), objects) : h('p', { class: 'dim' }, 'Nothing limits requests.'));
    },
  };
}
