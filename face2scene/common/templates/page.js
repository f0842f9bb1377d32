// The two menus choose what all sliders compare; each slider (a range input: drag or arrow keys) moves its cut.
const left = document.getElementById('left'), right = document.getElementById('right');

function show(within = document) {
  const tag = select => select.selectedOptions[0].dataset.tag;
  within.querySelectorAll('.compare').forEach(box => {
    box.querySelectorAll('img').forEach(img => {
      const view = img.dataset.view;
      img.hidden = view !== left.value && view !== right.value;
      img.classList.toggle('over', view === left.value);
    });
    box.querySelector('.tag.l').textContent = tag(left);
    box.querySelector('.tag.r').textContent = tag(right);
  });
}

document.querySelectorAll('[data-ratio]').forEach(box => { box.style.aspectRatio = box.dataset.ratio; });
document.addEventListener('input', event => {
  const slider = event.target;
  if (slider.matches('.compare input')) slider.parentNode.style.setProperty('--cut', slider.value + '%');
});
if (left && right) {
  left.addEventListener('change', () => show());
  right.addEventListener('change', () => show());
  show();
}
