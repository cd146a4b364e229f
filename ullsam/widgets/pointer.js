// A picture that tells the kernel where the pointer is; pixel centres are whole numbers.

export function toImage(client, rect, size) {
  const along = (value, start, length, pixels) =>
    Math.min(Math.max(((value - start) / length) * pixels - 0.5, -0.5), pixels - 0.501);
  return [
    along(client.x, rect.left, rect.width, size[0]),
    along(client.y, rect.top, rect.height, size[1]),
  ];
}

export function frame(cell, size) {
  const percent = (value, pixels) => `${(100 * value) / pixels}%`;
  const [x0, y0, x1, y1] = cell;
  return {
    left: percent(x0, size[0]),
    top: percent(y0, size[1]),
    width: percent(x1 - x0, size[0]),
    height: percent(y1 - y0, size[1]),
  };
}

// Sends one hover at a time; while the kernel works, only the newest waits.
export function makeSender(send) {
  let busy = false;
  let waiting = null;
  return {
    hover(message) {
      if (busy) waiting = message;
      else {
        busy = true;
        send(message);
      }
    },
    click(message) {
      waiting = null;
      busy = true;
      send(message);
    },
    answered() {
      busy = false;
      if (waiting) {
        const message = waiting;
        waiting = null;
        this.hover(message);
      }
    },
  };
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function render({ model, el }) {
  const box = document.createElement("div");
  box.style.cssText = "position:relative;display:inline-block;line-height:0;max-width:100%;cursor:crosshair";
  box.tabIndex = 0;
  const picture = document.createElement("img");
  picture.style.cssText = "max-width:100%;user-select:none";
  picture.draggable = false;
  const mark = document.createElement("div");
  mark.style.cssText =
    "position:absolute;box-sizing:border-box;border:2px solid white;outline:1px solid black;pointer-events:none";
  box.append(picture, mark);
  el.append(box);

  let url = null;
  const showPicture = () => {
    if (url) URL.revokeObjectURL(url);
    url = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }));
    picture.src = url;
    box.setAttribute("aria-label", model.get("label"));
    picture.alt = model.get("label");
  };
  const showCell = () => {
    const cell = model.get("cell");
    mark.style.display = cell.length ? "block" : "none";
    if (cell.length) Object.assign(mark.style, frame(cell, model.get("size")));
  };

  let focus = model.get("size").map((pixels) => (pixels - 1) / 2);
  const sender = makeSender((message) => model.send(message));
  const answered = () => sender.answered();
  const here = (event) =>
    (focus = toImage({ x: event.clientX, y: event.clientY }, picture.getBoundingClientRect(), model.get("size")));
  const click = (event, positive) => {
    event.preventDefault();
    sender.click({ kind: "click", xy: here(event), positive });
  };
  box.addEventListener("pointermove", (event) => sender.hover({ kind: "hover", xy: here(event) }));
  box.addEventListener("click", (event) => click(event, !event.shiftKey));
  box.addEventListener("contextmenu", (event) => click(event, false));
  box.addEventListener("keydown", (event) => {
    const size = model.get("size");
    if (ARROWS[event.key]) {
      focus = focus.map((value, axis) =>
        Math.min(Math.max(value + ARROWS[event.key][axis] * model.get("step"), 0), size[axis] - 1),
      );
      sender.hover({ kind: "hover", xy: focus });
    } else if (event.key === "Enter") {
      sender.click({ kind: "click", xy: focus, positive: !event.shiftKey });
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });

  model.on("change:png", showPicture);
  model.on("change:cell", showCell);
  model.on("change:answered", answered);
  showPicture();
  showCell();
  return () => {
    model.off("change:png", showPicture);
    model.off("change:cell", showCell);
    model.off("change:answered", answered);
    URL.revokeObjectURL(url);
  };
}

export default { render };
