"""The pack's blueprint in tests: placed on the page, and shortened."""

SHORTEN = """([id, seed]) => {
    const node = app.rootGraph.getNodeById(id)
    const set = (where, name, value) => {
        where.widgets.find(widget => widget.name == name).value = value
    }
    const inner = type => node.subgraph.nodes.find(each => each.type == 'DreamBooth' + type)
    set(node, 'class images', 4)
    set(inner('Train'), 'seed', seed)
    set(inner('PreviewSettings'), 'steps', 2)
    set(inner('SampleWithScheduler'), 'steps', 2)
}"""
"""Makes the blueprint's run another than those of before, and its drawing short."""


def place_blueprint(tab):
    """Find it in the search box, and place it with one click. Return its node's id."""
    page = tab.page
    page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.wait_for_function("app.rootGraph.nodes.length == 0")
    page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    box = page.locator("input:focus")
    box.fill("teach")
    page.get_by_text("a subject (DreamBooth)").first.click()
    page.wait_for_function("app.rootGraph.nodes.length == 1")
    box.wait_for(state="hidden")
    # The new node follows the mouse until it is clicked.
    page.mouse.move(450, 150, steps=4)
    page.mouse.click(450, 150)
    page.wait_for_function("!app.rootGraph.nodes[0].flags?.ghost")
    return page.evaluate("String(app.rootGraph.nodes[0].id)")
