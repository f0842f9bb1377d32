// A click or Enter on a heading of a table of scores sorts its rows, first the better way, then the other.
document.querySelectorAll('table.scores thead th').forEach(head => {
  const column = head.cellIndex;
  head.tabIndex = 0;
  const sort = () => {
    const body = head.closest('table').tBodies[0];
    const better = head.querySelector('[aria-label^="lower"]') || column === 0 ? 1 : -1;
    const sign = head.ariaSort === (better > 0 ? 'ascending' : 'descending') ? -better : better;
    const value = row => column ? parseFloat(row.cells[column].firstChild.textContent) : row.cells[0].firstChild.textContent;
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (!column) return sign * x.localeCompare(y);
      return isNaN(x) - isNaN(y) || sign * (x - y);
    };
    [...body.rows].sort(order).forEach(row => body.append(row));
    head.parentNode.querySelectorAll('th').forEach(other => { other.ariaSort = 'none'; });
    head.ariaSort = sign > 0 ? 'ascending' : 'descending';
  };
  head.addEventListener('click', sort);
  head.addEventListener('keydown', event => { if (event.key === 'Enter') sort(); });
});
