"""From dataset entries to batches. Imports no torch before `caching`.

- `entries`: dataset entries to a plan; nothing is read
- `files`: local files: images, captions, and what lies beside them
- `scanning`: files to records, remembered in an index
- `buckets`: the size at which an image is encoded; pure
- `samples`: records to samples: matched, placed, captioned, audited
- `caching`: encoded images and captions on disk
- `seeding`: random numbers by what they are for; pure
- `streaming`: epochs, batches, and reading them ahead
"""
