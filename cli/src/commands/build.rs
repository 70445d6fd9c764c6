//! `coracle build`: the component of a project.

use anyhow::Result;

use crate::{args::BuildArgs, output, project::Project};

pub async fn run(args: &BuildArgs) -> Result<()> {
    let project = Project::open(&args.dir)?;
    let file = project.build().await?;
    if args.test {
        project.test().await?;
    }
    output::line(file.display())
}
