# The paper's figures, as PNG and PDF, drawn from the tables: rules for each record of the table.


for name in FIGURES:  # snakemake figure_4, of all tasks and suites that have it
    files = tables.figure_results(PLAN, name)
    if files:

        rule:
            name:
                name
            input:
                files,
            localrule: True


for figure in FIGURES.values():
    if figure.key:

        rule:
            name:
                f"draw_{figure.name}"
            input:
                unpack(figure_inputs(request_of(figure))),
            output:
                png=figure_png(f"{FIGURE_FOLDER}{{task}}/", figure),
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
                f"draw_{figure.name}_all_tasks" if figure.key else f"draw_{figure.name}"
            input:
                unpack(figure_inputs(request_of(figure, SUITES[0]))),
            output:
                png=figure_png("results/figures/", figure),
                pdf=f"results/figures/{figure.name}.pdf",
            log:
                f"results/logs/figures/{figure.name}.log",
            localrule: True
            params:
                **drawing(figure, request_of(figure, SUITES[0])),
            script:
                "../scripts/figure.py"


rule figures:
    # All figures of what is published, drawn anew from its tables.
    input:
        lambda w: published_files(),
    output:
        directory("results/figures/reference"),
    log:
        "results/logs/figures/reference.log",
    localrule: True
    threads: 8
    params:
        reference=str(REFERENCE),
        code=PLAN.published_code(),
    script:
        "../scripts/published.py"


rule publish:
    # What results/reference holds of a miniature, to be moved there: tables and configuration.
    input:
        lambda w: list(publishing.begun(PLAN)),
    output:
        directory("results/published"),
    log:
        "results/logs/publish.log",
    localrule: True
    params:
        files=lambda w: publishing.begun(PLAN),
        config=lambda w: publishing.config_text(PLAN),
        code=PLAN.code("publish"),
    script:
        "../scripts/publish.py"
