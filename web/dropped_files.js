// The files that a user drops or chooses, also those of whole folders.

/**
 * A file and where it lay: captions belong to photos of the same place.
 * @typedef {{file: File, place: string}} Found
 *
 * @typedef {object} Dropped
 * @property {Found[]} files
 * @property {string[]} skipped Folders inside folders.
 * @property {string} name The name of the folder, if it is a single one.
 */

/**
 * Call it before the event of the drop has ended.
 * @param {DataTransfer} transfer
 * @returns {Promise<Dropped>}
 */
export async function dropped(transfer) {
  const items = [...transfer.items].filter(({ kind }) => kind === "file");
  const entries = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  /** @type {Dropped} */
  const found = { files: [], skipped: [], name: "" };
  for (const entry of entries) {
    if (entry instanceof File) found.files.push({ file: entry, place: "" });
    else if (entry?.isFile) found.files.push({ file: await fileOf(entry), place: "" });
    else if (entry) await addFolder(entry, found);
  }
  const [only] = entries;
  if (entries.length === 1 && only && !(only instanceof File) && only.isDirectory)
    found.name = only.name;
  return found;
}

/** What was chosen in a file dialog. @param {FileList} list @returns {Dropped} */
export function chosen(list) {
  const files = [];
  const skipped = new Set();
  let name = "";
  for (const file of list) {
    const folders = file.webkitRelativePath.split("/").slice(0, -1);
    name = folders[0] ?? "";
    if (folders.length > 1) skipped.add(folders[1]);
    else files.push({ file, place: name });
  }
  return { files, skipped: [...skipped], name };
}

/** @param {DataTransfer | null} transfer */
export function hasFiles(transfer) {
  return [...(transfer?.types ?? [])].includes("Files");
}

/** @param {FileSystemEntry} folder @param {Dropped} found */
async function addFolder(folder, found) {
  for (const entry of await entriesOf(folder)) {
    if (entry.isFile) found.files.push({ file: await fileOf(entry), place: folder.fullPath });
    else if (!entry.name.startsWith(".")) found.skipped.push(entry.name);
  }
}

/** @param {FileSystemEntry} folder @returns {Promise<FileSystemEntry[]>} */
async function entriesOf(folder) {
  const reader = /** @type {FileSystemDirectoryEntry} */ (folder).createReader();
  const all = [];
  for (;;) {
    // Each call returns a part of them.
    const some = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!some.length) return all;
    all.push(...some);
  }
}

/** @param {FileSystemEntry} entry @returns {Promise<File>} */
function fileOf(entry) {
  return new Promise((done, fail) => /** @type {FileSystemFileEntry} */ (entry).file(done, fail));
}
