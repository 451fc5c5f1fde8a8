"""A sentencepiece model as a tokenizer of transformers: its ids are those of the sentencepiece library itself.

Loading a folder that holds it needs `trust_remote_code=True` and `pip install sentencepiece`. Control pieces (the end of a
text) are recognised in a text, as transformers' tokenizers do; `split_special_tokens=True` gives sentencepiece's ids of any
text.
"""

import shutil
from pathlib import Path

import sentencepiece
from transformers import PreTrainedTokenizer


class RingSentencePieceTokenizer(PreTrainedTokenizer):
    """Text between control pieces goes to sentencepiece as it is. Nothing is added before or after."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file, **kwargs):
        self.vocab_file = str(vocab_file)
        self.sp_model = sentencepiece.SentencePieceProcessor(model_file=self.vocab_file)
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return self.sp_model.get_piece_size()

    def get_vocab(self):
        pieces = {self.sp_model.id_to_piece(index): index for index in range(self.vocab_size)}
        return {**pieces, **self.added_tokens_encoder}

    def _tokenize(self, text, **kwargs):
        return self.sp_model.encode(text, out_type=str)

    def _convert_token_to_id(self, token):
        return self.sp_model.piece_to_id(token)

    def _convert_id_to_token(self, index):
        return self.sp_model.id_to_piece(index)

    def convert_tokens_to_string(self, tokens):
        return self.sp_model.decode_pieces(list(tokens))

    def _decode(self, token_ids, skip_special_tokens=False, **kwargs):
        """Text of the runs between control pieces, joined without spaces. An id of no piece has no text, as in transformers'
        own tokenizers: a model may have more ids than its tokenizer."""
        ids = [token_ids] if isinstance(token_ids, int) else [int(index) for index in token_ids]
        special, text, run = set(self.all_special_ids), "", []
        for index in ids:
            if index not in special:
                if 0 <= index < self.vocab_size:
                    run.append(index)
                continue
            text += self.sp_model.decode(run)
            text += "" if skip_special_tokens else self.convert_ids_to_tokens(index)
            run = []
        return text + self.sp_model.decode(run)

    def save_vocabulary(self, save_directory, filename_prefix=None):
        name = (filename_prefix + "-" if filename_prefix else "") + "tokenizer.model"
        target = Path(save_directory) / name
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)
