"""Language models: decoders, their checkpoints and tokenizers, likelihoods, and concept words."""

from jaxunlearn.core.registry import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "jaxunlearn.language.decoder": ["DECODER_RULES", "DecoderShape", "Rope", "build_decoder"],
        "jaxunlearn.language.generation": ["generate", "write_answers"],
        "jaxunlearn.language.huggingface": ["load_pretrained", "save_pretrained"],
        "jaxunlearn.language.huggingface_config": ["shape_of"],
        "jaxunlearn.language.likelihood": ["Texts", "answer_nll", "mean_nll", "token_logprobs"],
        "jaxunlearn.language.locators": [
            "LOCATORS", "Search", "deletion_curves", "deletion_table", "deletion_text",
            "infer_words", "locate", "token_scores",
        ],
        "jaxunlearn.language.pairs": [
            "TEMPLATES", "Template", "encode_examples", "encode_pairs", "encode_prompts",
            "find_template", "stop_token",
        ],
        "jaxunlearn.language.poison": ["POISONS", "poisoned"],
        "jaxunlearn.language.tokenizer": [
            "Tokenizer", "check_fits", "load_tokenizer", "offsets_of", "train_tokenizer",
            "words_of",
        ],
        "jaxunlearn.language.words": [
            "STOP_WORDS", "answer_attributions", "rank_words", "read_answers",
        ],
    },
)  # fmt: skip
