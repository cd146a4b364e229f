// The rules that catch mistakes, not taste; run from the repository's root (`npm run lint` does). Names of the browser
// that the widgets use are listed here.
const names = [
  "Blob", "DecompressionStream", "Option", "Path2D", "ResizeObserver", "Response", "URL", "cancelAnimationFrame",
  "clearTimeout", "createImageBitmap", "document", "requestAnimationFrame", "setTimeout", "window",
];
const mistakes = [
  "no-undef", "no-unused-vars", "no-redeclare", "no-dupe-keys", "no-unreachable", "no-const-assign", "no-self-assign",
  "no-fallthrough", "no-var", "prefer-const", "eqeqeq", "no-implicit-globals", "use-isnan", "valid-typeof", "no-cond-assign",
];

export default [{
  files: ["ullsam/widgets/*.js", "tests/js/*.js"],
  languageOptions: {
    ecmaVersion: 2023, sourceType: "module", globals: Object.fromEntries(names.map((name) => [name, "readonly"])),
  },
  rules: { ...Object.fromEntries(mistakes.map((rule) => [rule, "error"])), "max-len": ["error", { code: 125 }] },
}];
