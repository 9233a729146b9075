"""Small talk, wishes for a person and complaints are told from questions, in ten languages."""

from __future__ import annotations

import pytest

from support_rag.dialogue.courtesy import small_talk, without_small_talk
from support_rag.dialogue.intent import questions_of, understand
from support_rag.dialogue.replies import REPLIES, Replies, known_language, language_of
from support_rag.dialogue.wishes import wants_person
from tests.timing import grows_linearly

SMALL_TALK = {
    "greeting": [
        "Hi", "Hello there!", "hey team", "Good morning everyone", "How are you?", "Guten Tag!",
        "Hallo zusammen", "Bonjour !", "¡Hola! ¿Qué tal?", "Olá, tudo bem?", "Buongiorno",
        "Goedemorgen", "Здравствуйте!", "こんにちは", "你好！",
    ],
    "thanks": [
        "thanks!", "Thank you so much", "ok thanks", "Great, that helped.", "thx", "👍",
        "Vielen Dank!", "merci beaucoup", "Muchas gracias por su ayuda", "Obrigado!",
        "Grazie mille",
        "dank je wel", "Спасибо за помощь", "ありがとうございます。", "谢谢您",
    ],
    "goodbye": [
        "Bye!", "Thanks, have a nice day", "Tschüss", "Danke, auf Wiedersehen",
        "Au revoir et merci",
        "Adiós", "até logo", "Arrivederci", "tot ziens", "До свидания", "さようなら", "再见",
    ],
}  # fmt: skip
WISHES = [
    "I want to talk to a human", "a human please", "Human!", "agent", "representative please",
    "Can I speak to someone?", "I'd like to speak with a real person about my invoice.",
    "I need a human, not a bot", "get me a manager", "Please connect me to an agent",
    "Let me talk to a person", "This does not help. I want to speak to a human.",
    "No, I want to talk to a person", "Could you transfer me to a representative?",
    "I don't want to talk to a bot", "Is there a real person I can talk to?", "customer service",
    "Can someone call me back?", "how do I talk to a human?",
    "I would prefer to chat with an agent",
    "Hi, can I talk to someone in sales please?", "I want to contact support",
    "Mitarbeiter", "Ich möchte mit einem Menschen sprechen",
    "Kann ich bitte mit jemandem sprechen?",
    "Verbinden Sie mich mit einem Mitarbeiter!", "mit einem echten Menschen reden bitte",
    "Je veux parler à un conseiller", "Puis-je parler à une vraie personne ?", "un humain svp",
    "Quiero hablar con una persona", "Necesito hablar con un agente por favor", "agente humano",
    "Quero falar com um atendente", "Gostaria de falar com uma pessoa de verdade", "atendente",
    "Vorrei parlare con un operatore", "Posso parlare con qualcuno?", "operatore umano",
    "Ik wil graag een medewerker spreken", "Kan ik met iemand praten?", "medewerker",
    "Хочу поговорить с оператором", "Соедините меня с оператором", "оператор",
    "オペレーターと話したいです", "人間と話せますか", "担当者につないでください",
    "我想找人工客服", "转人工", "我要和真人说话",
]  # fmt: skip
COMPLAINTS = [
    "Your stupid kiosk ate my card again. Fix it!!!", "This is ridiculous.", "You are useless",
    "Worst service ever!", "I am so angry at you", "fed up with this crap",
    "Are you kidding me?! This is unacceptable!", "I want to complain", "Das ist eine Frechheit!",
    "Ich will mich beschweren", "C'est honteux !", "¡Esto es una vergüenza!", "Isso é inaceitável!",
    "È una vergogna!", "Dit is belachelijk", "Это безобразие", "最悪です", "你们是骗子",
]  # fmt: skip
QUESTIONS = [
    "How do I add a person to my account?", "Can humans read my data?",
    "What happens when a customer says thanks?", "Where is the thanks page?",
    "Hello world template",
    "How do I assign an agent to a ticket?", "What does a representative earn?",
    "Can I talk to my team in the app?", "How do I let customers talk to an agent?",
    "Can someone else use my account?", "How do I remove a person from a shift?",
    "Which roles exist: agent, manager or operator?", "Is there a person limit per room?",
    "How do I change the greeting message?", "Does the bot say goodbye?",
    "How do I turn the auto reply 'thank you' off?", "What is a human agent seat?",
    "I need a manager account", "I want a person field in the form", "agent settings",
    "operator precedence", "customer service hours", "manager role permissions",
    "How do I contact customer support?", "What is the phone number of support?",
    "When a customer wants to talk to a human, what do I press?",
    "Can I speak to the door to open it?", "Can I get a refund?", "Can I get someone's shift?",
    "How can I chat with my colleagues?", "I want to talk to my bank about this charge",
    "Why does this stupid door not open?", "terrible weather widget", "angry customer template",
    "How do I handle an angry customer?", "What do I do with idiots who park in my bay?",
    "Your kiosk shows E-17", "The door won't open", "It doesn't work", "no", "yes", "E-1001",
    "How do I make a complaint?", "Where can I complain?", "Is this a scam?",
    "Wie füge ich einen Mitarbeiter hinzu?", "Mitarbeiter anlegen", "Können Menschen das lesen?",
    "Wie ändere ich die Begrüßung Hallo?", "Kann ein Mitarbeiter mit dem Terminal sprechen?",
    "Comment ajouter une personne ?", "Un agent peut-il voir mes données ?",
    "¿Cómo añado una persona a mi cuenta?", "¿Puede un agente ver mis datos?",
    "Como adiciono uma pessoa?", "O atendente pode ver os dados?",
    "Come aggiungo un operatore?", "Quanto costa un operatore?",
    "Hoe voeg ik een medewerker toe?", "Kan een medewerker dit zien?",
    "Как добавить оператора?", "Может ли человек читать мои данные?",
    "担当者を追加するにはどうすればいいですか", "オペレーターの権限は何ですか",
    "怎么添加客服？", "人工客服的工作时间是什么？",
]  # fmt: skip


def test_there_are_enough_of_each() -> None:
    assert len(WISHES) + len(COMPLAINTS) + sum(map(len, SMALL_TALK.values())) >= 100
    assert len(QUESTIONS) >= 60


@pytest.mark.parametrize(("kind", "text"), [(k, t) for k, ts in SMALL_TALK.items() for t in ts])
def test_small_talk_is_known(kind: str, text: str) -> None:
    assert understand(text).kind == kind


@pytest.mark.parametrize("text", WISHES)
def test_a_wish_for_a_person_is_heard(text: str) -> None:
    assert understand(text).kind == "human"


@pytest.mark.parametrize("text", COMPLAINTS)
def test_anger_that_asks_nothing_is_a_complaint(text: str) -> None:
    assert understand(text).kind == "complaint"


@pytest.mark.parametrize("text", QUESTIONS)
def test_a_question_stays_a_question(text: str) -> None:
    meant = understand(text)
    assert (meant.kind, meant.question) == ("question", text)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Hi, how do I reset my password? Thanks!", "how do I reset my password?"),
        ("Hello Anna, where is it? Many thanks, Robin", "where is it?"),
        ("Good morning, is the pool open?", "is the pool open?"),
        ("Hey can I pay by card", "can I pay by card"),
        ("Thanks! And how do I cancel?", "And how do I cancel?"),
        ("Hallo, wie kündige ich? Vielen Dank!", "wie kündige ich?"),
        ("Bonjour, comment annuler ? Merci", "comment annuler ?"),
        ("Hola, ¿cómo cancelo? Gracias", "¿cómo cancelo?"),
        ("Здравствуйте, как отменить заказ? Спасибо!", "как отменить заказ?"),
        ("你好，怎么退款？谢谢", "怎么退款？"),
        ("Where is the lift?\n\nKind regards,\nJo Smith", "Where is the lift?"),
    ],
)
def test_greeting_and_thanks_are_taken_from_a_question(text: str, question: str) -> None:
    meant = understand(text)
    assert (meant.kind, meant.question) == ("question", question)
    assert without_small_talk(question) == question


def test_a_mail_is_searched_for_by_the_sentences_that_ask() -> None:
    story = "We moved to the new building in spring and much has changed since that day. " * 5
    mail = f"Hello,\n\n{story}The parcel box is locked. Could you please tell me who has its key?"
    found = questions_of(f"{mail}\n\n{story}\n\nBest regards,\nKim")
    assert found == ("The parcel box is locked. who has its key?",)
    first, second = questions_of(f"{mail} {story} Is there a second one?")
    assert first == found[0] and second.endswith("Is there a second one?")
    assert questions_of(story) == (story.strip(),), "a mail that asks nothing is searched for whole"


def test_every_language_has_every_text_in_itself() -> None:
    assert len(REPLIES) == 10
    for language, replies in REPLIES.items():
        texts = [getattr(replies, name) for name in Replies.__slots__]
        assert all(texts) and len(set(texts)) == len(texts)
        assert known_language(" ".join(texts)) == language


SHORT = {  # sentences that the lists of words were not made from
    "pt": (
        "Vocês enviam fatura por correio?",
        "Quanto custa adicionar funcionários?",
        "Meu gerente não aprovou as horas",
        "Tem limite de usuários?",
        "Onde mudo o idioma?",
        "Recebi uma cobrança duplicada",
        "O tablet da entrada travou",
        "Dá para usar sem internet?",
    ),
    "fr": (
        "Ma badgeuse ne marche plus",
        "Combien coûte le forfait Entreprise ?",
        "Je n'arrive pas à me connecter",
        "Comment inviter un collègue ?",
        "Mes heures ne sont pas bonnes",
        "Quel est le délai de remboursement ?",
        "Où changer la langue ?",
        "Puis-je supprimer mon compte ?",
    ),
    "es": (
        "¿Cuánto cuesta el plan Business?",
        "No me llega el correo de invitación",
        "Quiero borrar mi cuenta",
        "Cómo cambio el idioma",
        "El fichaje de mi compañero está mal",
        "Tengo un cobro duplicado",
        "Hay límite de usuarios",
        "Puedo usarlo sin internet",
    ),
    "de": (
        "Was kostet der Business-Tarif?",
        "Ich komme nicht in mein Konto",
        "Wie ändere ich die Sprache?",
        "Mein Urlaub wird falsch angezeigt",
        "Wo lösche ich das Konto?",
        "Der Kiosk hängt",
        "Ich wurde doppelt belastet",
        "Geht das auch ohne Internet?",
    ),
    "it": (
        "Quanto costa il piano Business?",
        "Non riesco ad accedere",
        "Come cambio la lingua?",
        "Le mie ore sono sbagliate",
        "Voglio cancellare il mio account",
        "C'è un limite di utenti?",
        "Funziona senza internet?",
        "Ho ricevuto un addebito doppio",
    ),
    "nl": (
        "Wat kost het Business-abonnement?",
        "Ik kan niet inloggen",
        "Hoe verander ik de taal?",
        "Mijn uren kloppen niet",
        "Ik wil mijn account verwijderen",
        "Is er een limiet aan gebruikers?",
        "Werkt het zonder internet?",
        "Ik ben dubbel belast",
    ),
    "en": (
        "What does the Business plan cost?",
        "I can't log in",
        "Change language",
        "My hours are wrong",
        "Delete my account",
        "User limit per workspace",
        "Works without internet?",
        "charged twice",
        "No invoice since May",
    ),
}


@pytest.mark.parametrize("language", SHORT)
def test_a_short_message_tells_its_language(language: str) -> None:
    assert {text: known_language(text) or "en" for text in SHORT[language]} == dict.fromkeys(
        SHORT[language], language
    )


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Wie kann ich meinen Führerschein umtauschen?", "de"),
        ("Où se trouve la piscine ?", "fr"), ("¿Dónde está la piscina?", "es"),
        ("Onde fica a piscina e quanto custa?", "pt"), ("Dove si trova la piscina?", "it"),
        ("Waar is het zwembad?", "nl"), ("Где бассейн?", "ru"), ("プールはどこですか", "ja"),
        ("游泳池在哪里", "zh"), ("Where is the pool?", "en"), ("pool", "en"), ("", "en"),
    ],
)  # fmt: skip
def test_the_language_of_the_asker_is_known(text: str, language: str) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize(
    "piece",
    [
        "thanks ",
        "hi, ",
        "!",
        " ",
        "\n",
        "I want ",
        "please ",
        "a.",
        "human ",
        "谢谢",
        "?\n ",
        "stupid ",
    ],
)
def test_hostile_messages_take_linear_time(piece: str) -> None:
    def work(n: int) -> None:
        text = "x" + piece * n + "x"
        understand(text)
        understand(piece * n)
        language_of(text)

    grows_linearly(work, 4_000, slack=3)


def test_long_small_talk_is_not_read_as_such() -> None:
    assert small_talk("thanks " * 100) is None
    assert not wants_person("How would you answer this: I want to talk to a human")
