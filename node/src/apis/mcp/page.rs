//! Parts of long lists: an agent gets as many items as fit into a result, and the offset of the next ones.

use serde_json::{Map, Value};

/// Size of a result. Agents pay for every byte, and some clients cut or refuse results of 25,000 tokens.
pub(super) const RESULT_BYTES_MAX: usize = 64 * 1024;

/// Replaces the list at `key` by its items from `offset` on, at most `limit` of them and as many as fit, but
/// at least one. Adds their total number, and `next_offset` if there are more.
pub(super) fn cut(result: &mut Map<String, Value>, key: &str, offset: usize, limit: usize) {
    let Some(Value::Array(items)) = result.get_mut(key).map(Value::take) else { return };
    let total = items.len();
    let mut bytes = 0;
    let fits = |(at, item): &(usize, Value)| {
        bytes += item.to_string().len();
        *at == 0 || bytes <= RESULT_BYTES_MAX
    };
    let page: Vec<Value> = items
        .into_iter()
        .skip(offset)
        .take(limit)
        .enumerate()
        .take_while(fits)
        .map(|(_, item)| item)
        .collect();
    let next = offset.saturating_add(page.len());
    result.insert(key.to_owned(), page.into());
    result.insert("total".to_owned(), total.into());
    if next < total {
        result.insert("next_offset".to_owned(), next.into());
    }
}

/// Keeps the last items of a list, at most `limit` of them and as many as fit, but at least one. Returns
/// the number of the others.
pub(super) fn keep_last(items: &mut Vec<Value>, limit: usize) -> usize {
    let mut bytes = 0;
    let fits = |(at, item): &(usize, &Value)| {
        bytes += item.to_string().len();
        *at == 0 || bytes <= RESULT_BYTES_MAX
    };
    let kept = items.iter().rev().take(limit).enumerate().take_while(fits).count();
    let others = items.len() - kept;
    items.drain(..others);
    others
}

/// Cuts a text to this many characters and marks the cut.
pub(super) fn cut_text(text: &mut String, chars_max: usize) {
    if let Some((end, _)) = text.char_indices().nth(chars_max) {
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn page(items: Value, offset: usize, limit: usize) -> Value {
        let mut result = Map::from_iter([("items".to_owned(), items)]);
        cut(&mut result, "items", offset, limit);
        result.into()
    }

    #[test]
    fn a_page_names_the_next_one_until_the_end() {
        assert_eq!(page(json!([1, 2, 3]), 0, 2), json!({ "items": [1, 2], "total": 3, "next_offset": 2 }));
        assert_eq!(page(json!([1, 2, 3]), 2, 2), json!({ "items": [3], "total": 3 }));
        assert_eq!(page(json!([1]), 9, 2), json!({ "items": [], "total": 1 }));
        assert_eq!(page(json!([1]), usize::MAX, usize::MAX), json!({ "items": [], "total": 1 }));
    }

    #[test]
    fn a_page_ends_where_the_result_is_full() {
        let large = "x".repeat(RESULT_BYTES_MAX / 2);
        let result = page(json!([large, large, large]), 0, 3);
        assert_eq!((result["items"].as_array().unwrap().len(), &result["next_offset"]), (1, &json!(1)));
        let mut items = vec![json!(large), json!(1), json!(large), json!(2)];
        assert_eq!(keep_last(&mut items, 9), 1);
        assert_eq!(items, [json!(1), json!(large), json!(2)]);
        assert_eq!((keep_last(&mut items, 1), items), (2, vec![json!(2)]));
        assert_eq!(keep_last(&mut vec![], 1), 0);
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        let cut = |text: &str, chars| {
            let mut text = text.to_owned();
            cut_text(&mut text, chars);
            text
        };
        assert_eq!((cut("äöü", 2), cut("äöü", 3), cut("", 0)), ("äö…".into(), "äöü".into(), String::new()));
    }
}
