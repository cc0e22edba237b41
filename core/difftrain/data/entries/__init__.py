"""From dataset entries to a :class:`DataPlan`, with an object for every name. Reads nothing but the config.

- `data_plan`: the plan's classes
- `plan_datasets`: turns names into objects; start here
- `entry_links`: ids, and the names by which entries refer to each other
- `run_defaults`: what an entry leaves to the run
- `size_rules`: the sizes that an entry asks for
- `generator_entries`: `conditioning` blocks
- `caption_entries`: changes to captions
- `held_out`: which target sets are held out
- `reference_rules`: checks that the model and the sampling mode can use the references
- `training_schedule`: checks which sets are trained on when
- `text_entries`: text_embeds entries
- `written_folders`: folders that runs write, which hold no data
"""
