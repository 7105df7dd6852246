# saeflow: one study is one YAML file; everything that it shows is a file under results/<study>/.
from snakemake.utils import min_version

min_version("9.27")

# A study given by --configfile stands alone: Snakemake would merge it into the default study, SAEs and all.
if not workflow.configfiles and "study" not in config:

    configfile: f"{workflow.basedir}/config/config.yaml"


include: "workflow/rules/common.smk"


pathvars:
    results=f"results/{STUDY.study}",


containerized: "containers/saeflow.sif"


# The limit of jobs per second has the scheduler look at every input of every ready job once a second more for each job
# that ended: in a study of a hundred jobs that takes a core.
# Whether an endpoint may be asked is known before the first job; a dry run, or a report, asks none.
onstart:
    workflow.scheduler.job_rate_limiter = None
    check_endpoint()


include: "workflow/rules/inputs.smk"
include: "workflow/rules/networks.smk"
include: "workflow/rules/activations.smk"
include: "workflow/rules/saes.smk"
include: "workflow/rules/features.smk"


if STUDY.injection:

    include: "workflow/rules/injection.smk"


if STUDY.geometry:

    include: "workflow/rules/geometry.smk"


if STUDY.inversion:

    include: "workflow/rules/inversion.smk"


include: "workflow/rules/catalog.smk"
include: "workflow/rules/publish.smk"


rule all:
    default_target: True
    input:
        rules.report.input,
        rules.site.input,
        rules.verify.output,
        rules.catalog.input,
