//! `docs/fields.md`.

use super::{Rule, Support, Table, Values, examples::KINDS};

const HEAD: &str = "\
# Fields

What is made of each field of a manifest. A field stands for all that is below it, but for what has a row of its own.

| | |
|---|---|
| served | it does what Kubernetes says it does |
| warned | it is taken and has no effect; the answer says so in a `Warning` header, which kubectl prints |
| refused | a manifest that sets it is refused with 422, which names the field and the mend |

Unknown fields are refused or warned of as kubectl's `--validate` asks. Of `metadata` all is served as in Kubernetes, but for
`managedFields`, which nobody keeps yet. The tables are those by which manifests are admitted, `control/objects/src/support`:
`UPDATE_EXPECT=1 cargo test -p coracle-objects --test fields` makes this file anew, and without the variable the test fails
where it differs.
";

/// The whole file.
pub fn document() -> String {
    let mut told = Vec::new();
    for (.., table) in KINDS {
        tell(table, "spec", &mut told);
    }
    let mut text = HEAD.to_owned();
    for (table, places) in told {
        let places = places.iter().map(|place| format!("`{place}`")).collect::<Vec<_>>().join(", ");
        let title = table.title;
        text.push_str(&format!(
            "\n## {title}\n\nOf {places}.\n\n| field | support | note |\n|---|---|---|\n"
        ));
        table.rules.iter().for_each(|rule| text.push_str(&rule.row()));
    }
    text
}

/// Adds the table and those of its parts, each once with all its places.
fn tell(table: &'static Table, place: &str, told: &mut Vec<(&'static Table, Vec<String>)>) {
    if let Some((_, places)) = told.iter_mut().find(|(known, _)| std::ptr::eq(*known, table)) {
        if !places.iter().any(|known| known == place) {
            places.push(place.to_owned());
        }
        return;
    }
    told.push((table, vec![place.to_owned()]));
    for part in table.parts {
        tell(part.table, &format!("{place}.{}", part.path), told);
    }
}

impl Rule {
    fn row(&self) -> String {
        let what = match self.support {
            Support::Served => "served",
            Support::Warned => "warned",
            Support::Refused => "refused",
        };
        let values = match self.values {
            Values::Any => String::new(),
            Values::Only(values) => format!(": {}", values.join(", ")),
            Values::AllBut(values) => format!(" other than {}", values.join(", ")),
        };
        format!("| `{}`{values} | {what} | {} |\n", self.path, self.note)
    }
}
