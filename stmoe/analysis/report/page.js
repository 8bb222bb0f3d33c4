// The only script of a report. It sorts tables, and draws the charts that stand in data-chart attributes.
// Texts of runs are put in by textContent alone, so they stay text.

// A click on a heading sorts the rows before the first baseline; cells without a number come last.
for (const head of document.querySelectorAll('table.sortable th')) {
  const button = document.createElement('button');
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener('click', () => {
    const down = head.getAttribute('aria-sort') === 'ascending', at = head.cellIndex;
    for (const other of head.parentNode.children) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const body = head.closest('table').tBodies[0];
    const rows = [...body.rows].filter((row) => !row.classList.contains('baseline'));
    const rest = [...body.rows].filter((row) => row.classList.contains('baseline'));
    const key = (row) => row.cells[at].dataset.v ?? '';
    const compare = (a, b) => {
      const x = key(a), y = key(b);
      if (x === '' || y === '') return (x === '') - (y === '');
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    };
    body.append(...rows.sort(compare), ...rest);
  });
}

const WIDEST = 860, HEIGHT = 380, LEFT = 64, RIGHT = 14, TOP = 28, BOTTOM = 34;

function make(tag, parent, attributes = {}, text = '') {
  const svg = ['svg', 'path', 'line', 'text', 'circle'].includes(tag);
  const node = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text) node.textContent = text;
  parent.append(node);
  return node;
}

const short = (number) => {
  const power = number ? Math.min(Math.max(Math.floor(Math.log10(Math.abs(number)) / 3), 0), 6) : 0;
  return Number((number / 1000 ** power).toPrecision(4)) + ['', 'k', 'M', 'G', 'T', 'P', 'E'][power];
};

// Mean of each point with `window` points before it.
const smooth = (values, window) => values.map((_, at) => {
  const part = values.slice(Math.max(0, at - window), at + 1);
  return part.reduce((sum, value) => sum + value, 0) / part.length;
});

// A scale maps [low, high] to [from, to]; ticks are round numbers inside.
function scale(low, high, from, to, log) {
  const inner = log ? Math.log10 : (value) => value;
  const a = inner(low), b = inner(high) === a ? a + 1 : inner(high);
  const at = (value) => from + (inner(value) - a) / (b - a) * (to - from);
  const step = 10 ** Math.floor(Math.log10((b - a) / 4));
  const wide = [1, 2, 5, 10].map((factor) => factor * step).find((width) => (b - a) / width <= 6);
  const ticks = [];
  for (let tick = Math.ceil(a / wide) * wide; tick <= b + 1e-9 * wide; tick += wide) {
    ticks.push(log ? 10 ** tick : Number(tick.toPrecision(12)));
  }
  return {at, ticks};
}

function chart(host) {
  const data = JSON.parse(host.dataset.chart), off = new Set();
  const width = Math.min(Math.max(host.clientWidth, 280), WIDEST);   // of the page: so letters keep their size
  const controls = make('div', host, {class: 'controls'});
  const choose = (label, node) => {
    make('label', controls, {}, label + ' ').append(node);
    node.addEventListener('input', draw);
    return node;
  };
  const x = document.createElement('select');
  for (const [name, text] of Object.entries(data.axes)) make('option', x, {value: name}, text);
  choose('against', x);
  const box = () => Object.assign(document.createElement('input'), {type: 'checkbox'});
  const logX = choose('log x', box()), logY = choose('log y', box()), train = choose('training loss', box());
  train.checked = true;
  const window = choose('smoothing', Object.assign(
      document.createElement('input'), {type: 'range', min: 0, max: 40, value: data.smoothing}));
  const svg = make('svg', host, {viewBox: `0 0 ${width} ${HEIGHT}`, role: 'img', 'aria-label': data.title});
  const reading = make('div', host, {class: 'reading', 'aria-live': 'polite'}, 'Point at the chart for values.');
  const legend = make('div', host, {class: 'legend'});
  for (const label of new Set(data.series.map((one) => one.label))) {
    const {colour, dash} = data.series.find((one) => one.label === label);
    const button = make('button', legend, {'aria-pressed': 'true', type: 'button'});
    const swatch = make('svg', button, {class: 'swatch', viewBox: '0 0 22 6'});
    make('line', swatch, {x1: 0, x2: 22, y1: 3, y2: 3, stroke: colour, 'stroke-width': 3, 'stroke-dasharray': dash});
    button.append(label);
    button.addEventListener('click', () => {
      off.has(label) ? off.delete(label) : off.add(label);
      button.setAttribute('aria-pressed', String(!off.has(label)));
      draw();
    });
  }
  let shown = [], across = null;

  function curves() {
    const found = [];
    for (const one of data.series) {
      if (off.has(one.label)) continue;
      for (const kind of train.checked ? ['train', 'eval'] : ['eval']) {
        const xs = one[kind].x[x.value], ys = one[kind].y, smoothed = kind === 'train' ? smooth(ys, +window.value) : ys;
        const points = xs.map((value, at) => [value, smoothed[at]]).filter(
            ([a, b]) => (!logX.checked || a > 0) && (!logY.checked || b > 0));
        if (points.length) found.push({one, kind, points});
      }
    }
    return found;
  }

  function draw() {
    svg.replaceChildren();
    shown = curves();
    if (!shown.length) {
      make('text', svg, {x: width / 2, y: HEIGHT / 2, 'text-anchor': 'middle'}, 'nothing to draw');
      return;
    }
    const xs = shown.flatMap(({points}) => points.map(([a]) => a));
    // The fall from random weights hides the rest: y spans what comes after the first tenth of a curve.
    const ys = shown.flatMap(({points}) => points.slice(logY.checked ? 0 : Math.floor(points.length / 10)).map(([, b]) => b));
    const reduce = (best, values) => values.reduce((a, b) => best(a, b));
    const low = reduce(Math.min, ys), high = reduce(Math.max, ys), pad = logY.checked ? 0 : 0.05 * (high - low);
    across = scale(logX.checked ? reduce(Math.min, xs) : 0, reduce(Math.max, xs), LEFT, width - RIGHT, logX.checked);
    const up = scale(low - pad, high + pad, HEIGHT - BOTTOM, TOP, logY.checked);
    for (const tick of up.ticks) {
      make('line', svg, {class: 'axis', x1: LEFT, x2: width - RIGHT, y1: up.at(tick), y2: up.at(tick)});
      make('text', svg, {x: LEFT - 8, y: up.at(tick) + 4, 'text-anchor': 'end'}, short(tick));
    }
    for (const tick of across.ticks) {
      make('text', svg, {x: across.at(tick), y: HEIGHT - BOTTOM + 18, 'text-anchor': 'middle'}, short(tick));
    }
    make('text', svg, {x: LEFT, y: HEIGHT - 2}, data.axes[x.value]);
    make('text', svg, {x: 2, y: 12, class: 'strong'}, data.unit);
    const clip = (value) => Math.min(Math.max(value, -8), HEIGHT - BOTTOM + 20);
    for (const {one, kind, points} of shown) {
      const path = points.map(([a, b], at) => `${at ? 'L' : 'M'}${across.at(a).toFixed(1)},${clip(up.at(b)).toFixed(1)}`);
      make('path', svg, {class: `curve ${kind}`, d: path.join(''), stroke: one.colour, 'stroke-dasharray': one.dash});
      if (kind === 'eval') {
        for (const [a, b] of points) make('circle', svg, {cx: across.at(a), cy: clip(up.at(b)), r: 2.6, fill: one.colour});
      }
    }
  }

  // The value of every curve of validation nearest to the pointer.
  svg.addEventListener('pointermove', (event) => {
    const bounds = svg.getBoundingClientRect(), at = (event.clientX - bounds.left) / bounds.width * width;
    svg.querySelectorAll('line.at').forEach((line) => line.remove());
    const texts = [];
    let place = null;
    for (const {one, kind, points} of shown) {
      if (kind !== 'eval') continue;
      const near = points.reduce((a, b) => Math.abs(across.at(a[0]) - at) <= Math.abs(across.at(b[0]) - at) ? a : b);
      place ??= near[0];
      texts.push(`${one.name}: ${near[1].toFixed(4)}`);
    }
    if (place === null) return;
    make('line', svg, {class: 'at', x1: across.at(place), x2: across.at(place), y1: TOP, y2: HEIGHT - BOTTOM});
    reading.textContent = `${data.axes[x.value]} ${short(place)}: ${texts.join(', ')}`;
  });
  draw();
}

document.querySelectorAll('[data-chart]').forEach(chart);

// A click on an expert shows its tokens alone; another click shows all.
for (const chip of document.querySelectorAll('.chips button')) {
  chip.addEventListener('click', () => {
    const routed = chip.parentNode.parentNode.querySelector('.routed');
    const picked = chip.getAttribute('aria-pressed') === 'false';
    for (const other of chip.parentNode.children) other.setAttribute('aria-pressed', 'false');
    chip.setAttribute('aria-pressed', String(picked));
    routed.classList.toggle('picked', picked);
    for (const token of routed.querySelectorAll('span[data-e]')) {
      token.classList.toggle('picked', picked && token.dataset.e.split(' ').includes(chip.dataset.expert));
    }
  });
}
