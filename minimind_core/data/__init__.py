"""Where text comes from, and how it becomes batches.

    from minimind_core.data import Rows, document_encoder, open_source
    source = open_source("microworld", "text")
    stream = Rows(source, document_encoder(tokenizer), seq_len=128)

There are three steps, and each can be looked at alone. A *source* gives
records by index (`sources`), an *encoder* turns records into token ids and
labels (`encoding`), and `Rows` arranges those in rows (`packing`).
"""

from minimind_core.data.encoding import (
    Encoded,
    Encoder,
    conversation_encoder,
    document_encoder,
)
from minimind_core.data.packing import (
    Mixture,
    Row,
    Rows,
    RowStream,
    collate,
    count_labels,
    next_rows,
    pack,
)
from minimind_core.data.records import (
    Document,
    Messages,
    check_record,
    parse_record,
    record_kind,
)
from minimind_core.data.sources import (
    HELD_OUT_EVERY,
    Files,
    Slice,
    Source,
)
from minimind_core.data.specs import (
    MICROWORLD,
    Data,
    DataSpec,
    open_files,
    open_source,
    parse_data,
    tokenizer_texts,
)

__all__ = [
    "HELD_OUT_EVERY", "MICROWORLD", "Data", "DataSpec", "Document",
    "Encoded", "Encoder", "Files", "Messages", "Mixture", "Row", "RowStream",
    "Rows", "Slice", "Source", "check_record", "collate",
    "conversation_encoder", "count_labels", "document_encoder", "next_rows",
    "open_files", "open_source", "pack", "parse_data", "parse_record",
    "record_kind", "tokenizer_texts",
]  # fmt: skip
