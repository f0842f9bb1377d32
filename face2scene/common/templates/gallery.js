// Cards are made when they are scrolled to, from the numbers in #data; images load when they come into view.
const data = JSON.parse(document.getElementById('data').textContent);
const pick = id => document.getElementById(id);
const gallery = pick('gallery'), more = pick('more');
const PORTION = 48;
let queue = [];

const element = (tag, options = {}, children = []) => {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
};
const number = value => value === null || value === undefined ? '–' : Math.abs(value) >= 10 ? value.toFixed(2) : value.toFixed(4);

function valueOf(view, key, index) {
  const column = data.views[view].values[key];
  return column ? column[index] : null;
}

function rank(index) {  // higher is worse; null goes last
  const key = pick('order').value, of = pick('of').value, sign = data.metrics[key][1] ? -1 : 1;
  const value = view => valueOf(view, key, index);
  if (of === 'spread') {
    const all = Object.keys(data.views).map(value).filter(v => v !== null && v !== undefined);
    return all.length > 1 ? Math.max(...all) - Math.min(...all) : null;
  }
  if (of === 'apart') {
    const a = value(left.value), b = value(right.value);
    return a === null || b === null ? null : sign * (b - a);
  }
  const v = value(of === 'left' ? left.value : right.value);
  return v === null || v === undefined ? null : sign * v;
}

function imageOf(view, index) {
  const name = data.names[index], entry = data.views[view];
  if (entry.missing.includes(name)) return null;
  const image = element('img', {
    loading: 'lazy', decoding: 'async', src: `thumbnails/${view}/${encodeURIComponent(name)}.jpg`,
    alt: `${name}, ${entry.title}`,
  });
  image.dataset.view = view;
  return image;
}

function card(index) {
  const name = data.names[index], [width, height] = data.sizes[index];
  const slider = element('input', {type: 'range', min: 0, max: 100, value: 50});
  slider.setAttribute('aria-label', `${name}: share of the left image`);
  const views = [...new Set([left.value, right.value])];
  const box = element('div', {className: 'compare'}, [
    ...views.map(view => imageOf(view, index)).filter(Boolean),
    element('span', {className: 'tag l'}), element('span', {className: 'tag r'}),
    element('span', {className: 'bar'}), slider,
  ]);
  box.style.aspectRatio = `${width}/${height}`;
  const head = element('tr', {}, [element('td'), ...views.map(v => element('th', {textContent: data.views[v].title}))]);
  const rows = Object.entries(data.metrics).map(([key, [title, higher]]) => {
    const values = views.map(view => valueOf(view, key, index));
    const better = values.length > 1 && values.every(v => v !== null) && values[0] !== values[1]
      ? ((values[1] > values[0]) === higher ? 1 : 0) : -1;
    return element('tr', {}, [element('th', {textContent: title}),
      ...values.map((v, n) => element('td', {textContent: number(v), className: n === better ? 'up' : ''}))]);
  });
  const caption = element('figcaption', {}, [element('h3', {textContent: name}),
    element('table', {className: 'mini full'}, [element('thead', {}, [head]), element('tbody', {}, rows)])]);
  for (const view of views) {
    const entry = data.views[view];
    if (entry.flagged[name]) caption.append(element('p', {className: 'warn', textContent: `${entry.title}: ${entry.flagged[name]}`}));
    if (entry.missing.includes(name)) caption.append(element('p', {className: 'warn', textContent: `${entry.title}: missing`}));
    if (entry.why && entry.why[index]) {
      const lines = Object.entries(entry.why[index]).map(([k, v]) => `${k}: ${JSON.stringify(v)}`).join('\n');
      caption.append(element('details', {}, [element('summary', {textContent: `Restoration log, ${entry.title}`}),
        element('pre', {textContent: lines})]));
    }
  }
  const links = views.filter(v => data.views[v].full && data.views[v].full[index]).map(view => element('a', {
    href: data.views[view].full[index].split('/').map(encodeURIComponent).join('/'), textContent: `${data.views[view].title}, full size`,
  }));
  if (links.length) caption.append(element('p', {className: 'note links'}, links));
  return element('figure', {className: 'card shot'}, [box, caption]);
}

function portion() {
  const made = queue.splice(0, PORTION).map(card);
  gallery.append(...made);
  made.forEach(figure => show(figure));
}

function renew() {
  const wanted = pick('find').value.toLowerCase(), key = pick('order').value;
  let order = data.names.map((_, index) => index).filter(index => data.names[index].toLowerCase().includes(wanted));
  if (key !== 'name') {
    const ranks = new Map(order.map(index => [index, rank(index)])), direction = Number(pick('direction').value);
    order.sort((a, b) => {
      const [x, y] = [ranks.get(a), ranks.get(b)];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return direction * (y - x) || a - b;
    });
  }
  queue = order;
  pick('count').textContent = `${order.length} of ${data.names.length} images. Drag across one, or focus it and use the arrow keys.`;
  gallery.replaceChildren();
  portion();
}

new IntersectionObserver(seen => { if (seen[0].isIntersecting && queue.length) portion(); }, {rootMargin: '1200px'}).observe(more);
['left', 'right', 'order', 'of', 'direction'].forEach(id => pick(id).addEventListener('change', renew));
pick('find').addEventListener('input', renew);
renew();
