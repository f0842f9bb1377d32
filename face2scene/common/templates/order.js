// The menu #order sorts the cards of every gallery by a number, the worst first; without one they are as built.
const order = document.getElementById('order');
const galleries = [...document.querySelectorAll('.gallery')].map(gallery => [gallery, [...gallery.children]]);
order.addEventListener('change', () => galleries.forEach(([gallery, cards]) => {
  const worse = card => JSON.parse(card.dataset.worst)[order.value] ?? -Infinity;
  gallery.append(...(order.value ? [...cards].sort((a, b) => worse(b) - worse(a)) : cards));
}));
