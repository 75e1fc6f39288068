// Why a request goes where it goes.

import { fetched, h } from './dom.js';

export function explainView(root) {
  const field = (name, attributes) => h('input', { id: `ask-${name}`, name, required: true, ...attributes });
  const label = (name, text) => h('label', { for: `ask-${name}` }, text);
  const answer = h('div', { 'aria-live': 'polite' });
  const form = h('form', { class: 'ask', onsubmit: ask },
    label('from', 'From'), field('from', { placeholder: 'NAMESPACE/NAME', value: 'default/client' }),
    label('method', 'Method'), field('method', { value: 'GET' }),
    label('url', 'URL'), field('url', { placeholder: 'http://reviews:9080/path' }),
    label('headers', 'Headers'), h('textarea', { id: 'ask-headers', name: 'headers', rows: 3, placeholder: 'end-user: jason' }),
    h('button', { type: 'submit' }, 'Explain'));
  root.append(h('h2', {}, 'Why does a request go where it goes?'), form, answer);

  async function ask(event) {
    event.preventDefault();
    try {
      const told = await fetched(`/api/explain?${new URLSearchParams(new FormData(form))}`);
      answer.replaceChildren(h('pre', {}, told.text));
    } catch (error) { answer.replaceChildren(h('p', { class: 'bad' }, error.message)); }
  }
  return { every: null, async refresh() {} };
}
