//! The right name for a wrong one.

/// Two names are near when one is most of the other (`usrname` and `username` are, `url` and `name` are not) …
const NEAR: f64 = 0.75;
/// … or when so few letters are missing, too many, wrong or swapped (`epr` and `erp`).
const SLIPS: usize = 1;

/// The candidate most like `name`, if any is like it at all.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let name = name.to_lowercase();
            let likeness = strsim::jaro_winkler(&name, candidate);
            let is_near = likeness >= NEAR || strsim::damerau_levenshtein(&name, candidate) <= SLIPS;
            is_near.then_some((likeness, candidate))
        })
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// What to say about a name that is none of `candidates`: the nearest, and all there are.
pub fn remedy<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> String {
    let all: Vec<_> = candidates.clone().into_iter().map(|candidate| format!("`{candidate}`")).collect();
    let known = match all.as_slice() {
        [] => "there is none".to_owned(),
        names => format!("known here: {}", names.join(", ")),
    };
    match nearest(name, candidates) {
        Some(near) => format!("did you mean `{near}`? {known}"),
        None => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_is_recognised_and_a_strange_one_is_not() {
        let keys = ["url", "username", "password", "password_file", "ca_file"];
        assert_eq!(nearest("usrname", keys), Some("username"));
        assert_eq!(nearest("pasword_file", keys), Some("password_file"));
        assert_eq!(nearest("URL", keys), Some("url"));
        assert_eq!(nearest("epr", ["web", "erp"]), Some("erp"));
        assert_eq!(nearest("colour", keys), None);
        assert_eq!(remedy("colour", []), "there is none");
    }
}
