"""From dataset entries to a :class:`DataPlan`: every name an object. Reads nothing but the config.

- `data_plan`: the plan's classes
- `plan_datasets`: names to objects; start here
- `entry_links`: ids, and the names by which entries refer to each other
- `size_rules`: the sizes that an entry asks for
- `generator_entries`: `conditioning` blocks
- `held_out`: which target sets are held out
- `reference_rules`: whether model and sampling can do with the references
- `text_entries`: text_embeds entries
- `written_folders`: folders that runs write, which hold no data
"""
