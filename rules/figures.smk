# The paper's figures, as PNG and PDF, drawn from the tables: a rule for each record of the table.


def request_of(figure, suite=None):
    """What a figure is drawn of, for a path's suite and task, or over all tasks of a suite."""

    def request(wildcards):
        asked = suite or suite_of(wildcards)
        task = None if suite else wildcards.task
        return resolve(figure.request)(PLAN, asked, task, figure)

    return request


def drawing(figure, request):
    """Parameters of a figure's job."""
    return {
        "cfg": lambda wildcards: request(wildcards).arguments,
        "draw": figure.draw,
        "code": PLAN.figure_code(figure),
    }


def figure_inputs(request):
    """Files that a figure is drawn of."""
    return lambda wildcards: request(wildcards).inputs


def figure_png(folder, name):
    """The PNG of a figure, with its caption in the HTML report."""
    category = "Figures: {task}" if "{task}" in folder else "Figures"
    return report(f"{folder}{name}.png", caption=f"../report/{name}.rst", category=category)


for figure in FIGURES.values():
    if figure.key:

        rule:
            name:
                figure.name
            input:
                unpack(figure_inputs(request_of(figure))),
            output:
                png=figure_png(f"{FIGURE_FOLDER}{{task}}/", figure.name),
                pdf=f"{FIGURE_FOLDER}{{task}}/{figure.name}.pdf",
            log:
                f"results/logs/figures/{{suite}}{{task}}/{figure.name}.log",
            localrule: True
            params:
                **drawing(figure, request_of(figure)),
            script:
                "../scripts/figure.py"

    if figure.overall:

        rule:
            name:
                f"{figure.name}_all_tasks" if figure.key else figure.name
            input:
                unpack(figure_inputs(request_of(figure, SUITES[0]))),
            output:
                png=figure_png("results/figures/", figure.name),
                pdf=f"results/figures/{figure.name}.pdf",
            log:
                f"results/logs/figures/{figure.name}.log",
            localrule: True
            params:
                **drawing(figure, request_of(figure, SUITES[0])),
            script:
                "../scripts/figure.py"
