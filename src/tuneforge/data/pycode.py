"""`data=pydoc_code` and `data=pydoc_chat`: functions to write, and conversations, out of the standard library."""

import ast
import warnings
from collections import defaultdict
from collections.abc import Iterator

from tuneforge.data.pydoc import Question, first_sentence, questions
from tuneforge.data.rows import Row
from tuneforge.data.stdlib import Module, Symbol, is_held_out, modules, package

LONGEST = 500
"""Characters of a function's body: what a small model can write, and what a row of 512 tokens holds."""
SHORTEST = 20
"""Below, a body is `pass` or a single return of a name."""
TURNS = 4
"""Questions in a conversation, at most."""


def pydoc_code() -> list[Row]:
    """Functions and methods whose body is to be written from their signature and first sentence."""
    return [row for module in modules() for row in _functions(module)]


def pydoc_chat() -> list[Row]:
    """Conversations of two to four questions about one symbol; the later ones say "its", and need the first."""
    about: dict[Symbol, list[Question]] = defaultdict(list)
    for question in questions():
        about[question.symbol].append(question)
    return [_conversation(symbol, asked[:TURNS]) for symbol, asked in about.items() if len(asked) > 1]


def _conversation(symbol: Symbol, asked: list[Question]) -> Row:
    messages = []
    for number, question in enumerate(asked):
        row = question.row.fields
        # The first question shows what it is about; after that the conversation does.
        text = f"{row['instruction']}\n\n{row['input']}" if number == 0 else str(row["instruction"])
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": str(row["output"])}]
    held_out = is_held_out(symbol.module)
    return Row({"messages": messages}, origin=symbol.dotted, group=package(symbol.module), held_out=held_out)


def _functions(module: Module) -> Iterator[Row]:
    source = module.path.read_text(encoding="utf-8", errors="replace")
    with warnings.catch_warnings():
        # Invalid escapes in old modules.
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    documented = {symbol.name: symbol for symbol in module.symbols if symbol.kind in ("function", "method")}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in documented and not node.decorator_list:
            symbol = documented[node.name]
            sentence, body = first_sentence(symbol), _body(node)
            if sentence and SHORTEST <= len(body) <= LONGEST and body.isascii():
                instruction = f"Write the body of this Python function. {sentence}"
                yield Row(
                    {
                        "instruction": instruction,
                        "input": f"def {node.name}({ast.unparse(node.args)}):",
                        "output": body,
                    },
                    origin=symbol.dotted,
                    group=package(module.name),
                    held_out=is_held_out(module.name),
                )


def _body(node: ast.FunctionDef) -> str:
    """The statements after the docstring, as source, indented by four."""
    statements = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return "\n".join("    " + line for s in statements for line in ast.unparse(s).splitlines())
