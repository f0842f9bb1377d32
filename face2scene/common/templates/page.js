// The two menus choose what all sliders compare; each slider (a range input: drag or arrow keys) moves its cut. A third
// menu magnifies all of them, both sides alike, about a point of each that a double click moves.
const left = document.getElementById('left'), right = document.getElementById('right');
const zoom = document.getElementById('zoom');

function show(within = document) {
  const tag = (select, view) => [...select.options].find(option => option.value === view).dataset.tag;
  within.querySelectorAll('.compare').forEach(box => {
    const has = view => box.querySelector(`img[data-view="${view}"]`);
    const chosen = [[left, 'input'], [right, 'restored']].map(([select, other]) =>
      has(select.value) || !has(other) ? select.value : other);
    box.querySelectorAll('img').forEach(img => {
      const view = img.dataset.view;
      img.hidden = !chosen.includes(view);
      img.classList.toggle('over', view === chosen[0]);
    });
    box.querySelector('.tag.l').textContent = tag(left, chosen[0]);
    box.querySelector('.tag.r').textContent = tag(right, chosen[1]);
  });
}

function about(box, x, y) {  // percent of the box
  box.style.setProperty('--x', `${x}%`);
  box.style.setProperty('--y', `${y}%`);
}

document.querySelectorAll('[data-ratio]').forEach(box => {
  box.style.aspectRatio = box.dataset.ratio;
  about(box, ...box.dataset.middle.split(' ').map(parseFloat));
});
if (zoom) {
  const magnify = () => document.documentElement.style.setProperty('--zoom', zoom.value);
  zoom.addEventListener('change', magnify);
  document.addEventListener('dblclick', event => {
    const box = event.target.closest('.compare');
    if (!box) return;
    const place = box.getBoundingClientRect(), now = getComputedStyle(box), factor = Number(zoom.value);
    const at = (pointer, start, length, key) => {  // the point of the image under the pointer
      const fixed = parseFloat(now.getPropertyValue(key)) || 50;
      return fixed + (100 * (pointer - start) / length - fixed) / factor;
    };
    about(box, at(event.clientX, place.left, place.width, '--x'), at(event.clientY, place.top, place.height, '--y'));
    if (factor === 1) zoom.value = '4';
    magnify();
  });
}
document.addEventListener('input', event => {
  const slider = event.target;
  if (slider.matches('.compare input')) slider.parentNode.style.setProperty('--cut', slider.value + '%');
});
if (left && right) {
  left.addEventListener('change', () => show());
  right.addEventListener('change', () => show());
  show();
}
