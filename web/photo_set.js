// A folder of photos on the server: what it contains, and what a page can change in it.
// nodes/photo_view.py declares the same keys and routes.
import { api } from "/scripts/api.js";
import { post } from "./requests.js";

/**
 * @typedef {object} PhotoView
 * @property {string} name
 * @property {number} stamp
 * @property {number | null} width
 * @property {number | null} height
 * @property {string} caption
 * @property {string | null} caption_file
 * @property {string | null} mask
 * @property {string} fault
 * @property {boolean} is_used
 *
 * @typedef {object} PhotosView
 * @property {string} folder
 * @property {boolean} is_editable
 * @property {PhotoView[]} photos
 * @property {string} fault
 * @property {string[]} notes
 * @property {string[]} advice
 * @property {string[]} removed
 */

/** The event that a folder was changed. */
export const PHOTOS_EVENT = "dreambooth.photos";
export const PHOTOS_ROUTE = "/dreambooth/photos";
export const THUMBNAIL_ROUTE = "/dreambooth/photos/thumbnail";
export const ADD_ROUTE = "/dreambooth/photos/add";
export const CHANGED_ROUTE = "/dreambooth/photos/changed";
export const CAPTION_ROUTE = "/dreambooth/photos/caption";
export const REMOVE_ROUTE = "/dreambooth/photos/remove";
export const RESTORE_ROUTE = "/dreambooth/photos/restore";

const UPLOAD_ROUTE = "/upload/image";
const TOO_LARGE = 413;

/**
 * @param {string} folder @param {string} prompt
 * @returns {Promise<PhotosView>}
 */
export async function load(folder, prompt) {
  return answer(await api.fetchApi(`${PHOTOS_ROUTE}?${new URLSearchParams({ folder, prompt })}`));
}

/** @param {string} folder @param {PhotoView} photo */
export function thumbnail(folder, { name, stamp }) {
  const query = new URLSearchParams({ folder, name, stamp: String(stamp) });
  return api.apiURL(`${THUMBNAIL_ROUTE}?${query}`);
}

/**
 * Change something. Fails with the server's message.
 * @param {string} route @param {object} content
 * @returns {Promise<any>}
 */
export async function change(route, content) {
  return answer(await post(route, content));
}

/**
 * Upload a photo. ComfyUI overwrites nothing: another photo of this name gets a number.
 * @param {File} file @param {string} name @param {string} subfolder
 * @returns {Promise<string>} its name in the folder
 */
export async function upload(file, name, subfolder) {
  const body = new FormData();
  body.append("image", file, name);
  body.append("subfolder", subfolder);
  body.append("type", "input");
  const done = await api.fetchApi(UPLOAD_ROUTE, { method: "POST", body });
  if (done.status === TOO_LARGE)
    throw new Error("it is larger than this ComfyUI accepts (its option --max-upload-size)");
  if (!done.ok) throw new Error(`ComfyUI refused it (${done.status})`);
  return (await done.json()).name;
}

/** @param {Response} response @returns {Promise<any>} */
async function answer(response) {
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.error ?? `The server answered ${response.status}.`);
  return content;
}
