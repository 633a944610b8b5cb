// Puts a user's photos and their captions into a folder on the server.
import { ADD_ROUTE, CAPTION_ROUTE, change, CHANGED_ROUTE, load, upload } from "./photo_set.js";

/** @typedef {import("./dropped_files.js").Dropped} Dropped */
/** @typedef {import("./dropped_files.js").Found} Found */

const CAPTION = /\.(txt|caption)$/i;
const MAX_NAMES = 5;

/**
 * A photo that was stored: its file, where it lay, and its name on the server.
 * @typedef {Found & {name: string}} Stored
 */

/**
 * @param {string} wish The name of the folder that the user wants.
 * @param {Dropped} dropped
 * @param {(text: string) => void} report Called with what is being done.
 * @returns {Promise<{folder: string | null, notes: string[]}>} the folder's name in the menu, null
 *   if there was no photo, and what the user should know
 */
export async function addPhotos(wish, { files, skipped }, report) {
  const texts = files.filter(({ file }) => CAPTION.test(file.name));
  const others = files.filter(({ file }) => !CAPTION.test(file.name));
  const names = others.map(({ file }) => file.name);
  const plan = await change(ADD_ROUTE, { folder: wish, names });
  const notes = skipped.length
    ? [`Folders inside it were left out: ${listed(skipped)}. Drop them too to add their photos.`]
    : [];
  const left = others.filter((each, index) => !plan.names[index] && !isHidden(each));
  if (left.length) notes.push(`Left out, because they are not photos: ${listed(namesOf(left))}.`);
  const photos = others
    .map((each, index) => ({ ...each, name: plan.names[index] }))
    .filter(({ name }) => name);
  if (!photos.length && !texts.length) return { folder: null, notes: notes.length ? notes : [NONE] };
  const stored = await store(photos, plan.subfolder, report, notes);
  await addCaptions(texts, stored, plan.folder, notes);
  await change(CHANGED_ROUTE, { folder: plan.folder });
  return { folder: plan.folder, notes };
}

const NONE = "There were no photos in it.";

/**
 * @param {Stored[]} photos @param {string} subfolder @param {(text: string) => void} report
 * @param {string[]} notes
 * @returns {Promise<Stored[]>} those that were stored
 */
async function store(photos, subfolder, report, notes) {
  const stored = [];
  for (const [index, photo] of photos.entries()) {
    report(`Adding photo ${index + 1} of ${photos.length}`);
    try {
      stored.push({ ...photo, name: await upload(photo.file, photo.name, subfolder) });
    } catch (error) {
      notes.push(`'${photo.file.name}' was not added: ${messageOf(error)}.`);
    }
  }
  const renamed = stored.filter(({ file, name }) => file.name !== name);
  if (renamed.length) {
    const pairs = renamed.map(({ file, name }) => `${file.name} as ${name}`);
    notes.push(`Added under another name, because the name was taken or not allowed: ${listed(pairs)}.`);
  }
  return stored;
}

/** @param {Found[]} texts @param {Stored[]} stored @param {string} folder @param {string[]} notes */
async function addCaptions(texts, stored, folder, notes) {
  if (!texts.length) return;
  const there = (await load(folder, "")).photos.map(({ name }) => ({ name, place: null }));
  for (const text of texts) {
    const owner = ownerOf(text, stored) ?? ownerOf(text, there);
    try {
      if (!owner) throw new Error("there is no photo of this name");
      const content = await decoded(text.file);
      await change(CAPTION_ROUTE, { folder, name: owner, text: content, replace: false });
    } catch (error) {
      notes.push(`'${text.file.name}' was not added: ${withoutDot(messageOf(error))}.`);
    }
  }
}

/**
 * The name on the server of the photo that a caption file belongs to.
 * @param {Found} text
 * @param {{file?: File, name: string, place: string | null}[]} photos
 */
function ownerOf(text, photos) {
  const wanted = key(text.file.name.replace(CAPTION, ""));
  const owner = photos.find(({ file, name, place }) => {
    const original = key(file?.name ?? name);
    const fits = wanted === original || wanted === original.replace(/\.[^.]*$/, "");
    return fits && (place === null || place === text.place);
  });
  return owner?.name;
}

/** As the trainer reads captions. @param {File} file */
async function decoded(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const marks = { "255,254": "utf-16le", "254,255": "utf-16be" };
  const encoding = marks[/** @type {keyof marks} */ (String(bytes.slice(0, 2)))] ?? "utf-8";
  try {
    const text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
    if (!text.includes("\0")) return text;
  } catch {
    // Falls through to the same message.
  }
  throw new Error("it is not UTF-8 text. Save it as UTF-8");
}

/** @param {string} name */
function key(name) {
  return name.normalize("NFC").toLowerCase();
}

/** @param {Found} found */
function isHidden({ file }) {
  return file.name.startsWith(".") || /^(thumbs\.db|desktop\.ini)$/i.test(file.name);
}

/** @param {Found[]} files */
function namesOf(files) {
  return files.map(({ file }) => file.name);
}

/** @param {string[]} names */
function listed(names) {
  const more = names.length - MAX_NAMES;
  return names.slice(0, MAX_NAMES).join(", ") + (more > 0 ? `, and ${more} more` : "");
}

/** @param {unknown} error */
export function messageOf(error) {
  return error instanceof Error ? error.message : String(error);
}

/** @param {string} text */
function withoutDot(text) {
  return text.replace(/\.$/, "");
}
