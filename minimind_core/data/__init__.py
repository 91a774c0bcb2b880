"""Data loading: from files or other sources to batches.

    from minimind_core.data import Rows, document_encoder, open_source
    source = open_source("microworld", "text")
    stream = Rows(source, document_encoder(tokenizer), seq_len=128)

There are three independent steps. A *source* returns records by index
(`sources`), an *encoder* turns records into token ids and labels
(`encoding`), and `Rows` arranges those in rows (`packing`). Large files are
encoded once, into files of token ids (`ahead`, `shards`).
"""

from minimind_core.data.ahead import encode_ahead
from minimind_core.data.cleaning import clean, clean_file
from minimind_core.data.copies import PlainFile, plain_files
from minimind_core.data.encoding import (
    Encoded,
    Encoder,
    conversation_encoder,
    document_encoder,
)
from minimind_core.data.packing import (
    Batches,
    Mixture,
    Row,
    Rows,
    RowStream,
    as_stream,
    collate,
    count_labels,
    count_tokens,
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
    Chosen,
    Files,
    InMemory,
    LeftOut,
    Slice,
    Source,
    Weighted,
    left_out,
)
from minimind_core.data.specs import (
    MICROWORLD,
    Data,
    DataSpec,
    is_file_name,
    open_records,
    open_source,
    parse_data,
    spec_files,
    split_name,
    tokenizer_texts,
)

__all__ = [
    "HELD_OUT_EVERY", "MICROWORLD", "Batches", "Chosen", "Data", "DataSpec",
    "Document", "Encoded", "Encoder", "Files", "InMemory", "LeftOut",
    "Messages",
    "Mixture", "PlainFile", "Row", "RowStream", "Rows", "Slice", "Source",
    "Weighted", "as_stream",
    "check_record", "clean", "clean_file", "collate",
    "conversation_encoder", "count_labels", "count_tokens",
    "document_encoder", "encode_ahead", "is_file_name", "left_out",
    "next_rows",
    "open_records", "open_source", "pack", "parse_data", "parse_record",
    "plain_files", "record_kind", "spec_files", "split_name",
    "tokenizer_texts",
]  # fmt: skip
