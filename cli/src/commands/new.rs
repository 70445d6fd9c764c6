//! `coracle new`: a small project that builds, with its tests and a README.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::{
    args::{Language, NewArgs},
    output, project,
};

/// What a language's project is made of: paths and texts, in which `{{name}}` stands for the name.
struct Template {
    title: &'static str,
    files: &'static [(&'static str, &'static str)],
    /// What is to be done once before the first build.
    install: &'static str,
}

const README: &str = include_str!("new/templates/README.md");

macro_rules! files {
    ($language:literal: $($path:literal = $file:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("new/templates/", $language, "/", $file)))),*]
    };
}

fn template(language: Language) -> Template {
    match language {
        Language::Rust => Template {
            title: "Rust",
            files: files!("rust":
                "coracle.yaml" = "coracle.yaml", "Cargo.toml" = "Cargo.toml.in", "src/main.rs" = "src/main.rs.in",
                ".gitignore" = "gitignore",
            ),
            install: "rustup target add wasm32-wasip2",
        },
        Language::Js => Template {
            title: "JavaScript",
            files: files!("js":
                "coracle.yaml" = "coracle.yaml", "web.js" = "web.js", "web.wit" = "web.wit",
                "web.test.mjs" = "web.test.mjs", "package.json" = "package.json", ".gitignore" = "gitignore",
            ),
            install: "npm install",
        },
        Language::Python => Template {
            title: "Python",
            files: files!("python":
                "coracle.yaml" = "coracle.yaml", "app.py" = "app.py", "app.wit" = "app.wit",
                "test_app.py" = "test_app.py", ".gitignore" = "gitignore",
            ),
            install: "python3 -m venv .venv && .venv/bin/pip install componentize-py==0.25.1",
        },
        Language::C => Template {
            title: "C",
            files: files!("c":
                "coracle.yaml" = "coracle.yaml", "web.c" = "web.c", "answer.h" = "answer.h", "test.c" = "test.c",
                ".gitignore" = "gitignore",
            ),
            install: "python3 -m venv .venv && .venv/bin/pip install ziglang==0.17.1",
        },
        Language::Go => Template {
            title: "Go",
            files: files!("go":
                "coracle.yaml" = "coracle.yaml", "web.go" = "web.go", "web_test.go" = "web_test.go",
                "go.mod" = "go.mod", ".gitignore" = "gitignore",
            ),
            install: "",
        },
    }
}

/// Names that cargo refuses for packages: keywords of Rust, and crates that it has itself.
const NO_PACKAGES: [&str; 57] = [
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
    "proc-macro",
    "proc_macro",
];

pub fn run(args: &NewArgs) -> Result<()> {
    if args.lang == Language::Rust && NO_PACKAGES.contains(&&*args.name) {
        bail!("`{}` is a word of Rust's own, which no package is called: choose another name", args.name);
    }
    let folder = Path::new(&args.name);
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file() {
        bail!("{} is there already: choose another name", folder.display());
    }
    let Template { title, files, install } = template(args.lang);
    let once = if install.is_empty() { String::new() } else { format!("Once before: `{install}`.") };
    let readme = README.replace("{{language}}", &format!(" in {title}")).replace("{{install}}", &once);
    for (path, text) in files.iter().chain([&("README.md", readme.trim_end())]) {
        let path = folder.join(path);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        let text = text.trim_end().replace("{{name}}", &args.name) + "\n";
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    project::Project::open(folder)?;
    output::line(format!("{} is a project in {title}. What comes next:", folder.display()))?;
    output::line(format!("  cd {}", args.name))?;
    if !install.is_empty() {
        output::line(format!("  {install}"))?;
    }
    output::line(
        "  coracle dev       # builds and serves it, again at each change\n  coracle deploy .  # to a cluster",
    )
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_language_has_a_project_with_tests_and_no_name_left_open() {
        for language in Language::value_variants() {
            let Template { files, .. } = template(*language);
            let paths: Vec<&str> = files.iter().map(|(path, _)| *path).collect();
            assert!(paths.contains(&"coracle.yaml") && paths.contains(&".gitignore"), "{paths:?}");
            let all: String = files.iter().map(|(_, text)| text.replace("{{name}}", "x")).collect();
            assert!(all.contains("hello") && all.contains("test") && !all.contains("{{"), "{language:?}");
        }
    }
}
