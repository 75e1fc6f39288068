// Which view is shown, and when it is brought up to date.

import { h } from './dom.js';
import { explainView } from './explain.js';
import { graphView } from './graph.js';
import { limitsView } from './limits.js';
import { certificatesView, configurationView, workloadsView } from './tables.js';

const VIEWS = { graph: graphView, workloads: workloadsView, certificates: certificatesView, configuration: configurationView, limits: limitsView, explain: explainView };
const [main, state] = [document.getElementById('view'), document.getElementById('state')];
let present = null;

function open() {
  const [name, about] = location.hash.slice(1).split('/');
  const view = Object.hasOwn(VIEWS, name) ? name : 'graph';
  for (const link of document.querySelectorAll('nav a')) {
    if (link.hash === `#${view}`) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  clearTimeout(present?.timer);
  const root = h('div');
  root.style.display = 'contents';
  main.replaceChildren(root);
  present = { view: VIEWS[view](root, decoded(about)), timer: null };
  tick(present);
}

function decoded(text) {
  try { return decodeURIComponent(text || ''); } catch { return ''; }
}

async function tick(of) {
  try {
    // Nobody looks at a page in the background.
    if (!document.hidden) await of.view.refresh();
    if (of === present) { state.textContent = ''; state.className = ''; }
  } catch (error) {
    if (of === present) { state.textContent = `No answer from mesh-control: ${error.message}`; state.className = 'bad'; }
  }
  if (of === present && of.view.every) of.timer = setTimeout(() => tick(of), of.view.every);
}

window.addEventListener('hashchange', open);
document.addEventListener('visibilitychange', () => {
  if (!document.hidden && present?.view.every) { clearTimeout(present.timer); tick(present); }
});
open();
