"""Sets of rows: Hugging Face sets, and tables with the captions of local images. pyarrow is imported when one is read.

- `huggingface`: the data source and the caption source of Hugging Face sets; start here
- `set_options`: the keys of the block `huggingface`
- `set_files`: the files of one split, in a folder or from the hub
- `hub_files`: files that are read on the hub
- `row_groups`: decoded row groups, of which few are kept
- `table_file`: one parquet or arrow file, read lazily
- `columns`: finds `a.b.0` in a schema and in a row
- `row_filter`: which rows are used
- `row_image`: an image in a row
- `caption_tables`: captions of local images from parquet, jsonl and csv files
- `csv_set`: sets whose images are files that a CSV table names
- `plain_tables`: the rows of parquet, jsonl and csv files
"""
