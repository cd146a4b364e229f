// Files to and from the kernel: one is sent in pieces, each after the answer to the one before; results are saved.

const PIECE = 1 << 20; // bytes; far below what servers take in one message

// One sentence if a file cannot be sent, else "". `limit` in megabytes.
export function refusal({ name, size }, suffixes, limit) {
  const suffix = name.slice(name.lastIndexOf(".")).toLowerCase();
  if (!suffixes.includes(suffix)) return `${name} is not one of ${suffixes.join(", ")}; save it in one of these formats.`;
  if (!size) return `${name} is empty; choose another file.`;
  const large = `${name} has ${(size / 1e6).toFixed(1)} MB and the limit is ${limit} MB; crop it or save it smaller.`;
  return size > limit * 1e6 ? large : "";
}

// Start and end of each piece of `size` bytes.
export function pieces(size, length = PIECE) {
  return Array.from({ length: Math.ceil(size / length) }, (_, i) => [i * length, Math.min(size, (i + 1) * length)]);
}

function save(name, bytes) {
  const address = URL.createObjectURL(new Blob([bytes]));
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

function render({ model, el }) {
  const make = (tag, props, ...children) => {
    const node = Object.assign(document.createElement(tag), props);
    node.append(...children);
    return node;
  };
  const suffixes = model.get("suffixes"), limit = model.get("limit");
  const input = make("input", { type: "file", accept: suffixes.join(","), hidden: true, id: `file-${Math.random()}` });
  const button = (words, onclick, className = "") => make("button", { type: "button", onclick, className }, words);
  let purpose = "image"; // of the next file
  const pick = (what) => () => { purpose = what; input.click(); };
  const choose = button("Choose an image", pick("image"), "ullsam-choose");
  const example = button("Try the example", () => model.send({ kind: "example" }), "ullsam-example");
  const labels = button("Correct a label image", pick("labels"));
  labels.title = "Its objects become saved instances of the image below, to be edited, deleted or completed";
  const download = button("Download results", () => model.send({ kind: "results" }));
  const line = make("div", { className: "ullsam-told" });
  line.setAttribute("role", "status");
  const root = make("div", { className: "ullsam-files" }, input, choose, line, example, labels, download);

  let failed = false, proceed = () => {};
  const tell = (words, bad) => { line.textContent = words; line.classList.toggle("ullsam-bad", bad); };
  const refresh = () => {
    tell(model.get("told"), model.get("failed"));
    labels.hidden = !model.get("opened");
    download.disabled = !model.get("ready");
  };
  const answer = (message, buffers) => {
    if (message?.kind === "next") proceed(message.going);
    else if (message?.kind === "save") save(message.name, buffers[0]);
  };
  async function send(file, what) {
    const problem = refusal(file, suffixes, limit);
    if (problem || choose.disabled) return problem && tell(problem, true);
    const going = () => new Promise((resolve) => { proceed = resolve; });
    choose.disabled = true;
    try {
      model.send({ kind: "begin", name: file.name, size: file.size, purpose: what });
      for (const [start, end] of pieces(file.size)) {
        const bytes = await file.slice(start, end).arrayBuffer(), answered = going();
        tell(`Uploading ${file.name}: ${Math.round((100 * start) / file.size)} %`, false);
        model.send({ kind: "piece" }, undefined, [bytes]);
        if (!(await answered)) break;
      }
    } catch (error) {
      failed = true;
      tell(`${file.name} cannot be read by the browser (${error.message}); choose it again.`, true);
    } finally {
      choose.disabled = false;
      purpose = "image";
      input.value = "";
      if (!failed) refresh();
      failed = false;
    }
    return undefined;
  }
  input.addEventListener("change", () => input.files.length && send(input.files[0], purpose));
  const over = (on) => (event) => { event.preventDefault(); root.classList.toggle("ullsam-over", on); };
  root.addEventListener("dragover", over(true));
  root.addEventListener("dragleave", over(false));
  root.addEventListener("drop", (event) => {
    over(false)(event);
    if (event.dataTransfer.files.length) send(event.dataTransfer.files[0], "image");
  });

  const leaving = (event) => { if (model.get("unsaved") && model.get("alone")) event.preventDefault(); };
  window.addEventListener("beforeunload", leaving);
  const names = ["told", "failed", "opened", "ready"];
  names.forEach((name) => model.on(`change:${name}`, refresh));
  model.on("msg:custom", answer);
  el.append(root);
  refresh();
  return () => {
    window.removeEventListener("beforeunload", leaving);
    names.forEach((name) => model.off(`change:${name}`, refresh));
    model.off("msg:custom", answer);
  };
}

export default { render };
