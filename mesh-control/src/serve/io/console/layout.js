// Where the nodes of a graph stand: in columns from left to right, each to the right of whoever calls it. Pure.

export const NODE = { width: 190, height: 40 };
const GAP = { x: 130, y: 26 };
/** More columns than that are not read as a path. */
const DEEP = 12;

/** Positions by id, of nodes `ids` with `links` (pairs of ids). */
export function layout(ids, links) {
  const next = new Map(ids.map((id) => [id, []]));
  for (const [from, to] of links) if (from !== to && next.has(from) && next.has(to)) next.get(from).push(to);
  let ranks = ranked(ids, next);
  // Where many call each other, the longest way through them says nothing, and is as long as there are nodes.
  if (Math.max(0, ...ranks.values()) > DEEP) ranks = levels(ids, next);
  const columns = [];
  for (const id of ids) (columns[ranks.get(id)] ||= []).push(id);
  const before = new Map(ids.map((id) => [id, []]));
  for (const [from, tos] of next) for (const to of tos) before.get(to).push(from);
  const place = new Map();
  const number = (column) => column.forEach((id, at) => place.set(id, at / Math.max(1, column.length - 1)));
  columns.forEach(number);
  for (let sweep = 0; sweep < 4; sweep++) {
    const neighbours = sweep % 2 ? next : before;
    const wanted = (id) => {
      const of = neighbours.get(id);
      return of.length ? of.reduce((sum, one) => sum + place.get(one), 0) / of.length : place.get(id);
    };
    for (const column of sweep % 2 ? [...columns].reverse() : columns) {
      const keys = new Map(column.map((id) => [id, wanted(id)]));
      column.sort((a, b) => keys.get(a) - keys.get(b) || (a < b ? -1 : 1));
      number(column);
    }
  }
  return spread(columns, ids.length);
}

/** The longest way to each node; what leads back is left out. */
function ranked(ids, next) {
  const state = new Map();
  const order = [];
  for (const root of ids) {
    // By hand: a chain may be longer than the stack.
    const stack = [[root, 0]];
    while (stack.length) {
      const top = stack[stack.length - 1];
      const [id] = top;
      if (!state.has(id)) state.set(id, 'open');
      const tos = next.get(id);
      while (top[1] < tos.length && state.has(tos[top[1]])) {
        if (state.get(tos[top[1]]) === 'open') tos.splice(top[1], 1);
        else top[1]++;
      }
      if (state.get(id) === 'done' || top[1] >= tos.length) {
        if (state.get(id) !== 'done') order.push(id);
        state.set(id, 'done');
        stack.pop();
      } else stack.push([tos[top[1]], 0]);
    }
  }
  const ranks = new Map(ids.map((id) => [id, 0]));
  for (const id of order.reverse()) for (const to of next.get(id)) ranks.set(to, Math.max(ranks.get(to), ranks.get(id) + 1));
  return ranks;
}

/** How far each node is from whom nobody calls; beyond what is read, all are in one column. */
function levels(ids, next) {
  const called = new Set([...next.values()].flat());
  const ranks = new Map();
  let here = ids.filter((id) => !called.has(id));
  if (here.length === 0) here = ids.slice(0, 1);
  for (let rank = 0; here.length; rank++) {
    for (const id of here) ranks.set(id, Math.min(rank, DEEP));
    here = [...new Set(here.flatMap((id) => next.get(id)))].filter((id) => !ranks.has(id));
  }
  for (const id of ids) if (!ranks.has(id)) ranks.set(id, 0);
  return ranks;
}

/** Columns that are too long become several. */
function spread(columns, count) {
  const most = Math.max(14, Math.ceil(Math.sqrt(count) * 1.6));
  const parts = columns.filter(Boolean).flatMap((column) => {
    const pieces = Math.ceil(column.length / most);
    const size = Math.ceil(column.length / pieces);
    return Array.from({ length: pieces }, (_, at) => column.slice(at * size, (at + 1) * size));
  });
  const tallest = Math.max(1, ...parts.map((part) => part.length));
  const positions = new Map();
  parts.forEach((part, column) => part.forEach((id, row) => positions.set(id, {
    x: column * (NODE.width + GAP.x),
    y: (row + (tallest - part.length) / 2) * (NODE.height + GAP.y),
  })));
  return {
    positions,
    width: Math.max(1, parts.length) * (NODE.width + GAP.x) - GAP.x,
    height: tallest * (NODE.height + GAP.y) - GAP.y,
  };
}
