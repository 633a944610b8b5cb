"""What tests do with photos on the page."""


def drop(tab, paths, x, y):
    """Drop files of this computer on the page."""
    session = tab.page.context.new_cdp_session(tab.page)
    data = {"items": [], "files": list(map(str, paths)), "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": x, "y": y, "data": data}
        session.send("Input.dispatchDragEvent", event)


def place_of(tab, node):
    """Bring a node into sight, and return the middle of its title in the window."""
    tab.page.evaluate(
        "id => { const node = app.rootGraph.getNodeById(id); app.canvas.ds.scale = 1;"
        " app.canvas.ds.offset = [300 - node.pos[0], 120 - node.pos[1]];"
        " app.canvas.setDirty(true, true) }",
        node,
    )
    # The page only finds nodes that it has drawn.
    tab.page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    box = tab.page.evaluate(
        "() => { const { left, top } = app.canvas.canvas.getBoundingClientRect();"
        " return [left, top] }"
    )
    return box[0] + 360, box[1] + 105


def panel_of(tab, folder):
    """The panel once it shows this folder."""
    panel = tab.page.locator(f".dreambooth-photos[data-folder='{folder}']")
    panel.wait_for(state="attached")
    return panel


def photos_panel(tab):
    return tab.page.get_by_role("region", name="Photos", exact=True)


def names_in(panel):
    return panel.locator(".photos b").all_text_contents()


def confirm(tab, name=None):
    """Answer the question for the folder's name."""
    field = tab.page.get_by_role("dialog").get_by_role("textbox")
    field.wait_for()
    if name is not None:
        field.fill(name)
    suggested = field.input_value()
    field.press("Enter")
    return suggested
