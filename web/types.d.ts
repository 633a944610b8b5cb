// The parts of ComfyUI's page that the pack uses: /scripts/app.js and /scripts/api.js.
import type { ClassView } from "./class_images.js";
import type { Changes, View } from "./view.js";

export const app: App;
export const api: Api;

export interface App {
  graph: Graph;
  /** The graph of the workflow while a subgraph is shown. Older pages have only `graph`. */
  rootGraph?: Graph;
  extensions?: { name: string }[];
  extensionManager: {
    command: { execute(id: string): Promise<void> };
    dialog: {
      /** The text, or null if it was cancelled. */
      prompt(question: { title: string; message: string; defaultValue: string }): Promise<string | null>;
    };
    setting: { get(id: string): unknown };
  };
  registerExtension(extension: Extension): void;
}

export interface Extension {
  name: string;
  beforeRegisterNodeDef?(nodeType: { prototype: GraphNode }, nodeData: { name: string }): void;
  nodeCreated?(node: GraphNode): void;
  afterConfigureGraph?(): void | Promise<void>;
  /** The menus were updated. */
  refreshComboInNodes?(): void;
}

export interface Api {
  apiURL(path: string): string;
  fetchApi(path: string, options?: RequestInit): Promise<Response>;
  addEventListener<Name extends keyof Events>(
    name: Name,
    listener: (event: CustomEvent<Events[Name]>) => void,
  ): void;
}

/** The contents of the server's messages. */
export interface Events {
  "dreambooth.live": Changes;
  "dreambooth.checkpoint": { step: number; name: string; node: string };
  promptQueueing: unknown;
  execution_start: unknown;
  execution_error: { node_id: string; exception_message: string };
  executed: {
    node: string;
    prompt_id: string;
    output?: { dreambooth?: View[]; dreambooth_class_images?: ClassView[]; images?: SavedImage[] };
  };
  progress_text: { nodeId: string; text: string };
  "dreambooth.class_images": ClassView;
  "dreambooth.photos": { folder: string };
}

export interface SavedImage {
  filename: string;
  subfolder: string;
  type: string;
}

export interface GraphNode {
  id: number | string;
  /** Missing for the page's own nodes, such as notes and subgraphs. */
  comfyClass?: string;
  title: string;
  graph?: Graph | null;
  subgraph?: Graph;
  size: [number, number];
  widgets?: Widget[];
  inputs?: { name: string; link?: number | null }[];
  onAdded?(...values: unknown[]): void;
  onRemoved?(...values: unknown[]): void;
  /** Whether something can be dropped on it. */
  onDragOver?(event: DragEvent): boolean;
  /** Whether it took what was dropped. */
  onDragDrop?(event: DragEvent): boolean;
  onConfigure?(saved?: SavedNode): void;
  isInputConnected(slot: number): boolean;
  addDOMWidget(name: string, type: string, element: HTMLElement, options: object): Widget;
  addCustomWidget(widget: Widget): Widget;
  removeWidget(widget: Widget): void;
  computeSize(): [number, number];
  setSize(size: [number, number]): void;
  setDirtyCanvas(foreground: boolean, background?: boolean): void;
}

/** A node in a workflow's file. */
export interface SavedNode {
  size?: [number, number];
  widgets_values?: unknown[] | Record<string, unknown>;
}

export interface Graph {
  id: string;
  nodes: GraphNode[];
  /** The inputs of a subgraph, and the links inside it that begin there. */
  inputNode?: { slots: { name: string; linkIds: number[] }[] };
  events?: EventTarget;
}

export interface Widget {
  name: string;
  label?: string;
  value?: unknown;
  serialize?: boolean;
  hidden?: boolean;
  options?: object;
  callback?(...values: unknown[]): void;
}
