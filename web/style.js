// The look of the panel, in the colours of ComfyUI's theme.

const CSS = `
.dreambooth-panel {
  --photos: #4493f8; --class: #d9822b; --prompts: #3fa65c;
  position: relative; min-height: 56px; height: 100%; overflow: hidden; border-radius: 6px;
  background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd);
  font: 12px/1.4 sans-serif; user-select: text;
}
/* Outside the flow: the node decides about the height, not what is shown in it. */
.dreambooth-panel .content { position: absolute; inset: 0; overflow: auto; padding: 8px; }
.dreambooth-panel[data-state] { min-height: 280px; }
.dreambooth-panel [hidden] { display: none !important; }
.dreambooth-panel :is(p, ul, h4, figure) { margin: 0; padding: 0; }
.dreambooth-panel .content > * + * { margin-top: 6px; }
.dreambooth-panel .status { font-weight: 600; font-size: 13px; }
.dreambooth-panel .details, .dreambooth-panel .lines, .dreambooth-panel figcaption,
.dreambooth-panel h4 { color: var(--descrip-text, #999); }
.dreambooth-panel h4 { font-weight: 600; font-size: 12px; }
.dreambooth-panel progress {
  appearance: none; display: block; width: 100%; height: 6px; border: none; border-radius: 3px;
  overflow: hidden; background: var(--border-color, #4e4e4e);
}
.dreambooth-panel progress::-webkit-progress-bar { background: var(--border-color, #4e4e4e); }
.dreambooth-panel progress::-webkit-progress-value { background: var(--photos); }
.dreambooth-panel progress::-moz-progress-bar { background: var(--photos); }
.dreambooth-panel .message { white-space: pre-line; padding-left: 8px; border-left: 3px solid var(--class); }
.dreambooth-panel[data-state="failed"] .message { border-color: var(--error-text, #f44); }
.dreambooth-panel .lines { list-style: none; overflow-wrap: anywhere; }
.dreambooth-panel .buttons { display: flex; flex-wrap: wrap; gap: 4px; }
.dreambooth-panel button, .dreambooth-window button, .dreambooth-window select {
  font: inherit; padding: 3px 5px; border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px;
  background: var(--comfy-menu-bg, #353535); color: var(--input-text, #ddd); cursor: pointer;
}
.dreambooth-panel button { font-size: 11px; }
.dreambooth-panel button:disabled { opacity: 0.5; cursor: default; }
.dreambooth-panel :focus-visible, .dreambooth-window :focus-visible {
  outline: 2px solid var(--photos, #4493f8); outline-offset: 1px;
}
.dreambooth-panel .written { overflow-wrap: anywhere; }
.dreambooth-panel .chart svg { display: block; width: 100%; }
.dreambooth-panel .chart figcaption { display: flex; flex-wrap: wrap; gap: 2px 10px; }
.dreambooth-panel .chart figcaption b { color: var(--input-text, #ddd); }
.dreambooth-panel .chart i {
  display: inline-block; width: 14px; margin-right: 4px; vertical-align: middle;
  border-style: solid; border-width: 2px 0 0;
}
.dreambooth-panel .chart text { fill: var(--descrip-text, #999); font-size: 11px; }
.dreambooth-panel .chart .grid { stroke: var(--border-color, #4e4e4e); stroke-width: 0.6; }
.dreambooth-panel .chart polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.dreambooth-panel .photos { stroke: var(--photos); border-color: var(--photos); }
.dreambooth-panel .class { stroke: var(--class); border-color: var(--class); stroke-dasharray: 6 2; }
.dreambooth-panel i.class { border-top-style: dashed; }
.dreambooth-panel .prompts { stroke: var(--prompts); border-color: var(--prompts); stroke-dasharray: 2 2; }
.dreambooth-panel i.prompts { border-top-style: dotted; }
.dreambooth-panel .best { stroke: var(--input-text, #ddd); stroke-dasharray: 2 3; }
.dreambooth-panel rect.overfitting { fill: #f44; opacity: 0.18; }
.dreambooth-panel span.overfitting { color: var(--error-text, #f66); }
.dreambooth-panel .pictures { display: flex; gap: 4px; margin-bottom: 6px; }
.dreambooth-panel .pictures figure { flex: 1 1 0; min-width: 0; max-width: 50%; }
.dreambooth-panel .pictures button { display: block; width: 100%; padding: 0; overflow: hidden; }
.dreambooth-panel .pictures a { display: block; }
.dreambooth-panel .pictures img { display: block; width: 100%; }
.dreambooth-panel .pictures figcaption {
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden;
  font-size: 11px;
}
.dreambooth-either, .dreambooth-photos { position: relative; height: 100%; box-sizing: border-box; }
.dreambooth-either { min-height: 120px; }
.dreambooth-photos {
  --photos: #4493f8; --class: #d9822b;
  min-height: 160px; overflow: hidden; border-radius: 6px;
  background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd);
  font: 12px/1.4 sans-serif; user-select: text;
}
.dreambooth-either > .dreambooth-photos { min-height: 120px; }
.dreambooth-photos[hidden], .dreambooth-photos [hidden] { display: none !important; }
.dreambooth-photos .content { position: absolute; inset: 0; overflow: auto; padding: 8px; outline: none; }
.dreambooth-photos :is(p, ul, li) { margin: 0; padding: 0; list-style: none; }
.dreambooth-photos .content > * + * { margin-top: 6px; }
.dreambooth-photos .top { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 10px; }
.dreambooth-photos .status { font-weight: 600; font-size: 13px; margin-right: auto; }
.dreambooth-photos .buttons { display: flex; flex-wrap: wrap; align-items: center; gap: 4px; }
.dreambooth-photos :is(.hint, .size, .details, .notes, .removed, p.caption, .buttons) {
  color: var(--descrip-text, #999);
}
.dreambooth-photos button {
  font: inherit; font-size: 11px; padding: 3px 5px; border: 1px solid var(--border-color, #4e4e4e);
  border-radius: 4px; background: var(--comfy-menu-bg, #353535); color: var(--input-text, #ddd);
  cursor: pointer;
}
.dreambooth-photos :focus-visible { outline: 2px solid var(--photos); outline-offset: 1px; }
.dreambooth-photos :is(.faults, .notes) li { padding-left: 8px; overflow-wrap: anywhere; }
.dreambooth-photos :is(.faults, .notes) li + li { margin-top: 4px; }
.dreambooth-photos .faults li { border-left: 3px solid var(--error-text, #f44); }
.dreambooth-photos .notes li { border-left: 3px solid var(--class); }
.dreambooth-photos .photos li { display: flex; gap: 8px; }
.dreambooth-photos .photos li + li { margin-top: 6px; }
.dreambooth-photos .photos :is(img, .broken) {
  flex: none; width: 64px; height: 64px; border-radius: 4px; object-fit: contain;
  background: var(--border-color, #4e4e4e);
}
.dreambooth-photos .broken {
  display: flex; align-items: center; justify-content: center;
  font-size: 24px; color: var(--error-text, #f66);
}
.dreambooth-photos .text { flex: 1; min-width: 0; display: flex; flex-direction: column; gap: 2px; }
.dreambooth-photos .head { display: flex; align-items: center; gap: 6px; }
.dreambooth-photos .head b { overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
.dreambooth-photos .head .size { white-space: nowrap; font-size: 11px; }
.dreambooth-photos .head button { padding: 0 4px; margin-left: auto; }
.dreambooth-photos[data-over] { outline: 2px dashed var(--photos); outline-offset: -3px; }
.dreambooth-photos .fault { color: var(--error-text, #f66); }
.dreambooth-photos textarea {
  flex: 1; box-sizing: border-box; width: 100%; min-height: 38px; padding: 2px 4px; resize: none;
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px;
  background: transparent; color: inherit; font: inherit;
}
.dreambooth-photos textarea::placeholder { color: var(--descrip-text, #999); font-style: italic; }
.dreambooth-photos .caption.none { font-style: italic; }
.dreambooth-photos progress {
  appearance: none; display: block; width: 100%; height: 6px; border: none; border-radius: 3px;
  overflow: hidden; background: var(--border-color, #4e4e4e);
}
.dreambooth-photos progress::-webkit-progress-bar { background: var(--border-color, #4e4e4e); }
.dreambooth-photos progress::-webkit-progress-value { background: var(--photos); }
.dreambooth-photos progress::-moz-progress-bar { background: var(--photos); }
.dreambooth-photos .message { white-space: pre-line; padding-left: 8px; border-left: 3px solid var(--class); }
.dreambooth-photos[data-state="failed"] .message { border-color: var(--error-text, #f44); }
.dreambooth-photos .thumbnails { display: flex; flex-wrap: wrap; gap: 4px; }
.dreambooth-photos .thumbnails img { width: 64px; height: 64px; object-fit: contain; border-radius: 4px; }
.dreambooth-photos .announcement {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
}
.dreambooth-notice {
  min-height: 64px; height: 100%; overflow: auto; box-sizing: border-box; padding: 8px;
  border-radius: 6px; background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd);
  font: 12px/1.4 sans-serif; user-select: text;
}
.dreambooth-notice .message {
  margin: 0; padding-left: 8px; border-left: 3px solid var(--error-text, #f44); white-space: pre-line;
}
.dreambooth-panel .announcement {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
}
.dreambooth-window {
  max-width: 94vw; max-height: 94vh; padding: 12px; border: 1px solid var(--border-color, #4e4e4e);
  border-radius: 8px; background: var(--comfy-menu-bg, #353535); color: var(--input-text, #ddd);
  font: 14px/1.4 sans-serif;
}
.dreambooth-window::backdrop { background: rgb(0 0 0 / 60%); }
.dreambooth-window header { display: flex; gap: 12px; align-items: start; justify-content: space-between; }
.dreambooth-window p { margin: 0 0 8px; }
.dreambooth-window .sides { display: flex; gap: 12px; align-items: start; }
.dreambooth-window img { display: block; margin-top: 8px; width: min(44vw, 76vh); image-rendering: auto; }
.dreambooth-window img[hidden] { display: none; }
`;

/** Add the style to the page once. */
export function addStyle() {
  if (document.getElementById("dreambooth-style")) return;
  const style = document.createElement("style");
  style.id = "dreambooth-style";
  style.textContent = CSS;
  document.head.append(style);
}
